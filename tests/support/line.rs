//! A line between mover and daemon that counts and can be cut.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// A line to the daemon that counts and can be cut.
pub struct Line {
    /// Where it begins, on this host.
    pub port: u16,
    bytes: Arc<AtomicU64>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Line {
    /// How many bytes went over it, both ways added.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// To what listens on `port` of this host.
    pub fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let line = Self {
            port: listener.local_addr().unwrap().port(),
            bytes: Arc::default(),
            open: Arc::default(),
        };
        let (bytes, open) = (line.bytes.clone(), line.open.clone());
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else {
                    // The daemon is down: whoever called sees the connection end.
                    continue;
                };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to, bytes) = (from.try_clone().unwrap(), to.try_clone().unwrap(), bytes.clone());
                    std::thread::spawn(move || carry(from, to, &bytes));
                }
                open.lock().unwrap().extend([near, far]);
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

fn carry(mut from: TcpStream, mut to: TcpStream, bytes: &AtomicU64) {
    let mut buf = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buf) {
        bytes.fetch_add(count as u64, Ordering::Relaxed);
        if to.write_all(&buf[..count]).is_err() {
            break;
        }
    }
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}
