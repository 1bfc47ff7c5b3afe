# What CI runs.
check:
    .ci/run

# All tests, what they need installed first.
test:
    tests/run

# Shows that the simulator catches the planted bugs.
planted:
    tests/planted
