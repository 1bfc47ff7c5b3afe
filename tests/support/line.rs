//! A line between mover and daemon that counts and can be cut.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

/// When how many bytes went over a line.
type Passed = Arc<Mutex<Vec<(Instant, usize)>>>;

/// A line to the daemon that counts and can be cut.
pub struct Line {
    /// Where it begins, on this host.
    pub port: u16,
    bytes: Arc<AtomicU64>,
    passed: [Passed; 2],
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Line {
    /// How many bytes went over it, both ways added.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// When how many bytes went to the daemon, and when how many came from there, over all connections.
    pub fn passed(&self) -> [Vec<(Instant, usize)>; 2] {
        [0, 1].map(|way: usize| {
            let mut passed = self.passed[way].lock().unwrap().clone();
            passed.sort();
            passed
        })
    }

    /// To what listens on `port` of this host.
    pub fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let line = Self {
            port: listener.local_addr().unwrap().port(),
            bytes: Arc::default(),
            passed: Default::default(),
            open: Arc::default(),
        };
        let (bytes, passed, open) = (line.bytes.clone(), line.passed.clone(), line.open.clone());
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else {
                    // The daemon is down: whoever called sees the connection end.
                    continue;
                };
                // Before anything goes over it.
                open.lock()
                    .unwrap()
                    .extend([&near, &far].map(|end| end.try_clone().unwrap()));
                for ((from, to), passed) in [(&near, &far), (&far, &near)].into_iter().zip(&passed) {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (bytes, passed) = (bytes.clone(), passed.clone());
                    std::thread::spawn(move || carry(from, to, &bytes, &passed));
                }
            }
        });
        line
    }

    /// Cuts all connections that go over it.
    pub fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            // It may have ended by itself.
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, bytes: &AtomicU64, passed: &Passed) {
    let mut buf = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buf) {
        bytes.fetch_add(count as u64, Ordering::Relaxed);
        passed.lock().unwrap().push((Instant::now(), count));
        if to.write_all(&buf[..count]).is_err() {
            break;
        }
    }
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}
