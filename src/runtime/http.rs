//! A server's pages for those who watch over it: `/metrics`, `/livez`, `/readyz` and `/status`, over HTTP/1.1.
//!
//! One thread serves them, with an event loop of its own over a handful of connections. All that it shares with the
//! server's loop is the published status, of which it takes a copy for each page: no client, however slow or numerous, can
//! hold that loop up, and the lock is never held across a system call.
//!
//! Everything is bounded. A connection carries one request and is closed after it. Its request has to fit into
//! [`HEAD_BYTES`], and everything it does has to be done within a deadline, however busily it goes about it. When there are
//! [`CONNECTIONS`] and one more comes, the oldest goes: who only holds a connection open keeps nobody out.
//!
//! Deliberately absent: request bodies, which nobody needs to read a page, connections that are kept, and encryption.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry, Token, Waker};

use crate::net::{Accepted, accept, listen};

mod exposition;
mod pages;

use pages::Answer;
pub use pages::{Pages, describe};

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
const FIRST_CONN: usize = 2;

/// Connections at a time.
const CONNECTIONS: usize = 16;
/// The longest request: its first line and its headers.
const HEAD_BYTES: usize = 8192;
const HEADERS: usize = 64;
/// How long a request may take to arrive, and its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long, and how much, is read of what comes behind an answered request: closing at once could take the answer away
/// from a client that is still sending.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;
/// How long accepting rests when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The pages of one server, while they are served. Dropping this ends the thread and frees the port.
pub struct Http {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

/// Serves the pages of a server at `address`; where its port is 0, the system chooses one.
///
/// # Errors
///
/// It cannot listen there (said with the address), or there is no event loop or thread to be had.
pub fn serve(address: SocketAddr, pages: Pages) -> io::Result<Http> {
    serve_within(address, pages, PATIENCE)
}

fn serve_within(address: SocketAddr, pages: Pages, patience: Duration) -> io::Result<Http> {
    let (mut listener, address) = listen(address)?;
    let poll = Poll::new()?;
    let waker = Waker::new(poll.registry(), WAKER)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let stop = Arc::new(AtomicBool::new(false));
    let name = format!("{} http", pages.server());
    let server = Server {
        pages,
        patience,
        listener,
        registry: poll.registry().try_clone()?,
        stop: stop.clone(),
        conns: BTreeMap::new(),
        next_token: FIRST_CONN,
        accept_at: None,
    };
    let thread = std::thread::Builder::new().name(name).spawn(move || server.run(poll))?;
    Ok(Http { address, stop, waker, thread: Some(thread) })
}

impl Http {
    /// Where the pages are.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Err(e) = self.waker.wake() {
            return log::error!("the thread of the pages at {} cannot be woken: {e}", self.address);
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread of the pages at {} has panicked; its message stands above", self.address);
        }
    }
}

struct Server {
    pages: Pages,
    patience: Duration,
    listener: TcpListener,
    registry: Registry,
    stop: Arc<AtomicBool>,
    /// In the order of their arrival.
    conns: BTreeMap<usize, Conn>,
    next_token: usize,
    accept_at: Option<Instant>,
}

struct Conn {
    stream: TcpStream,
    deadline: Instant,
    stage: Stage,
}

enum Stage {
    /// What has come of the request.
    Asking(Vec<u8>),
    /// What is left of the answer.
    Answering(Vec<u8>),
    /// Bytes read since the answer went.
    Leaving(usize),
}

impl Server {
    fn run(mut self, mut poll: Poll) {
        let mut events = Events::with_capacity(64);
        loop {
            let due = self.conns.values().map(|c| c.deadline).chain(self.accept_at).min();
            let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
            match poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return log::error!("the pages of {} end: {e}", self.pages.server()),
            }
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            let now = Instant::now();
            self.conns.retain(|_, conn| now < conn.deadline);
            for event in &events {
                match event.token() {
                    LISTENER => self.accept_at = Some(now),
                    WAKER => {}
                    Token(token) => self.step(token, now),
                }
            }
            if self.accept_at.is_some_and(|at| at <= now) {
                self.accept(now);
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..CONNECTIONS {
            match accept(&self.listener) {
                Accepted::Stream(stream, _) => self.insert(stream, now),
                Accepted::Lost(e) => log::debug!("a connection was lost before it was accepted: {e}"),
                Accepted::Drained => {
                    self.accept_at = None;
                    return;
                }
                Accepted::Pause(e) => {
                    log::debug!("out of descriptors, accepting rests: {e}");
                    self.accept_at = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
        // There may be more. First come those that are here.
        self.accept_at = Some(now);
    }

    fn insert(&mut self, mut stream: TcpStream, now: Instant) {
        let token = self.next_token;
        self.next_token += 1;
        if let Err(e) =
            self.registry.register(&mut stream, Token(token), Interest::READABLE | Interest::WRITABLE)
        {
            return log::debug!("a connection could not be watched: {e}");
        }
        if self.conns.len() >= CONNECTIONS {
            self.conns.pop_first();
        }
        let stage = Stage::Asking(Vec::new());
        self.conns.insert(token, Conn { stream, deadline: now + self.patience, stage });
        self.step(token, now);
    }

    /// Goes on with one connection as far as its socket lets it, and closes it once it is done or broken.
    fn step(&mut self, token: usize, now: Instant) {
        let Some(conn) = self.conns.get_mut(&token) else { return };
        loop {
            match conn.step(&self.pages, now, self.patience) {
                Ok(true) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Ok(false) | Err(_) => break,
            }
        }
        self.conns.remove(&token);
    }
}

impl Conn {
    /// Reads or writes once; whether there is more to do.
    fn step(&mut self, pages: &Pages, now: Instant, patience: Duration) -> io::Result<bool> {
        let mut buffer = [0; HEAD_BYTES];
        match &mut self.stage {
            Stage::Asking(head) => {
                let free = HEAD_BYTES - head.len();
                let read = self.stream.read(&mut buffer[..free])?;
                head.extend_from_slice(&buffer[..read]);
                if let Some(answer) = respond(pages, head) {
                    (self.stage, self.deadline) = (Stage::Answering(answer), now + patience);
                }
                Ok(read > 0)
            }
            Stage::Answering(left) => {
                let written = self.stream.write(left)?;
                left.drain(..written);
                if left.is_empty() {
                    self.stream.shutdown(Shutdown::Write)?;
                    (self.stage, self.deadline) = (Stage::Leaving(0), now + LINGER.min(patience));
                }
                Ok(written > 0)
            }
            Stage::Leaving(behind) => {
                let read = self.stream.read(&mut buffer)?;
                *behind += read;
                Ok(read > 0 && *behind < LINGER_BYTES)
            }
        }
    }
}

/// The answer to a request, as bytes; `None` while its end has not come.
fn respond(pages: &Pages, head: &[u8]) -> Option<Vec<u8>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = request.parse(head);
    let method = request.method.unwrap_or_default();
    let answer = match parsed {
        Ok(httparse::Status::Complete(_)) => pages.answer(method, request.path.unwrap_or_default()),
        Ok(httparse::Status::Partial) if head.len() < HEAD_BYTES => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            Answer::new(431, &format!("more than {HEAD_BYTES} bytes or {HEADERS} headers"))
        }
        Err(e) => Answer::new(400, &format!("this is no HTTP request: {e}")),
    };
    Some(bytes(&answer, method == "HEAD"))
}

fn bytes(answer: &Answer, head_only: bool) -> Vec<u8> {
    let Answer { code, content_type, body } = answer;
    let (reason, more) = match code {
        200 => ("OK", ""),
        400 => ("Bad Request", ""),
        404 => ("Not Found", ""),
        405 => ("Method Not Allowed", "Allow: GET, HEAD\r\n"),
        431 => ("Request Header Fields Too Large", ""),
        _ => ("Service Unavailable", ""),
    };
    let length = body.len();
    let shown = if head_only { "" } else { body };
    format!(
        "HTTP/1.1 {code} {reason}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n{more}\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n{shown}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests;
