//! Passes bytes on between servers: at once, late, or not at all while both ends believe that the connection stands.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, Sender};
use parking_lot::{Condvar, Mutex};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Pass,
    Delay(Duration),
    /// Connections stand and carry nothing; those that stood are broken when this ends.
    HalfOpen,
}

struct Shared {
    /// The mode, and how often it has changed.
    mode: Mutex<(Mode, u64)>,
    changed: Condvar,
    /// Pieces of what was sent that came late, or not at all.
    touched: AtomicU64,
}

/// All connections that go to one server.
#[derive(Clone)]
pub struct Proxy(Arc<Shared>);

impl Proxy {
    pub fn new() -> Proxy {
        let mode = Mutex::new((Mode::Pass, 0));
        Proxy(Arc::new(Shared { mode, changed: Condvar::new(), touched: AtomicU64::new(0) }))
    }

    pub fn set(&self, mode: Mode) {
        let mut now = self.0.mode.lock();
        *now = (mode, now.1 + 1);
        self.0.changed.notify_all();
    }

    /// Pieces that were held up or lost since the last question.
    pub fn touched(&self) -> u64 {
        self.0.touched.swap(0, Ordering::Relaxed)
    }

    /// Listens at one address for the whole run, on threads of its own, and connects to another one for whoever comes.
    pub fn serve(&self, at: &str, to: String) -> Result<(), String> {
        let listener = TcpListener::bind(at).map_err(|e| format!("proxy at {at}: {e}"))?;
        let shared = self.0.clone();
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let (shared, to) = (shared.clone(), to.clone());
                thread::spawn(move || {
                    // Nobody there: the caller sees its connection end.
                    let Ok(far) = TcpStream::connect(&to) else { return };
                    let _ = (near.set_nodelay(true), far.set_nodelay(true));
                    let clone = |stream: &TcpStream| stream.try_clone().expect("descriptors enough");
                    pump(shared.clone(), clone(&near), clone(&far));
                    pump(shared, far, near);
                });
            }
        });
        Ok(())
    }
}

/// One direction of one connection: one thread reads, and one writes when it is time.
fn pump(shared: Arc<Shared>, mut from: TcpStream, to: TcpStream) {
    let (queue, queued): (Sender<(Instant, Vec<u8>)>, _) = channel::bounded(1024);
    let other_end = shared.clone();
    thread::spawn(move || write(&other_end, &queued, to));
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let mode = shared.mode.lock().0;
            let due = match mode {
                Mode::Delay(delay) => Instant::now() + delay,
                Mode::Pass | Mode::HalfOpen => Instant::now(),
            };
            if queue.send((due, buffer[..count].to_vec())).is_err() {
                break;
            }
        }
    });
}

fn write(shared: &Shared, queued: &Receiver<(Instant, Vec<u8>)>, mut to: TcpStream) {
    for (due, bytes) in queued {
        if due > Instant::now() {
            shared.touched.fetch_add(1, Ordering::Relaxed);
            let _ = channel::at(due).recv();
        }
        let mut mode = shared.mode.lock();
        if mode.0 == Mode::HalfOpen {
            shared.touched.fetch_add(1, Ordering::Relaxed);
            let since = mode.1;
            while mode.1 == since {
                shared.changed.wait(&mut mode);
            }
            break;
        }
        drop(mode);
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
