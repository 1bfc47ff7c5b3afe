//! Signals that end a program.

use std::{future::Future, io, time::Duration};

use signal_hook::{
    consts::{SIGHUP, SIGINT},
    iterator::Signals,
    low_level::emulate_default_handler,
};
use tokio::sync::oneshot;

/// What comes so soon after the first signal is the same end once more: a terminal that is closed tells the shell, which tells its jobs, and
/// them; `timeout` tells the program, and its group.
const ONE_AND_THE_SAME: Duration = Duration::from_millis(200);

/// How often it is looked whether a second one came.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Whatever hangs then: the program ends.
const HARD: Duration = Duration::from_millis(900);

/// A signal that ends the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending(i32);

impl Ending {
    /// As shells tell it.
    pub fn exit_code(self) -> u8 {
        128 + self.0 as u8
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self.0 {
            SIGINT => "SIGINT",
            SIGHUP => "SIGHUP",
            _ => "SIGTERM",
        }
    }
}

/// Waits for the first of `signals`. From then on the program has 0.9 s, and ends with `code` of it whatever hangs; a second one ends it at once. Those that were ignored
/// when it was started stay so. Fails where no thread can be started, or a signal can't be taken.
pub fn first_of(signals: &[i32], code: fn(Ending) -> u8) -> io::Result<impl Future<Output = Ending> + use<>> {
    // Who starts a program in the background, or with nohup, has it ignore these.
    let mut signals = Signals::new(signals.iter().filter(|signal| !is_ignored(**signal)))?;
    let (tell, told) = oneshot::channel();
    let waiting = move || {
        let Some(signal) = signals.forever().next() else { return };
        // Where nobody waits any more the program is at its end.
        tell.send(Ending(signal)).ok();
        let mut waited = Duration::ZERO;
        while waited < HARD {
            #[expect(clippy::disallowed_methods, reason = "the runtime may be what hangs")]
            std::thread::sleep(LOOK_EVERY);
            waited += LOOK_EVERY;
            let second = signals.pending().last();
            if let Some(second) = second.filter(|_| waited > ONE_AND_THE_SAME) {
                // Ends the process, if it is one that does.
                emulate_default_handler(second).ok();
            }
        }
        // SAFETY: ends the process. What is half done is gone on with by the next run, as after any kill.
        unsafe { libc::_exit(code(Ending(signal)).into()) };
    };
    std::thread::Builder::new().spawn(waiting)?;
    Ok(async {
        match told.await {
            Ok(ending) => ending,
            Err(_) => std::future::pending().await,
        }
    })
}

fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: asks only, and writes what it is asked for.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: it was written where that worked.
    asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}
