//! The file system of the operating system.
