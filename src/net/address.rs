//! Where a server is: a host, by name or number, and a port. Names are looked up again for every connection, so a server
//! may move; and on a thread of their own, since a look-up may take seconds.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::sync::Arc;

use mio::Waker;
use parking_lot::Mutex;

/// `host:port`, where the host is a name, an IPv4 address, or an IPv6 address in brackets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(String);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        let wrong =
            || format!("{text:?}: must be an address such as \"10.0.0.1:7001\" or \"bank-1.example:7001\"");
        if text.parse::<SocketAddr>().is_ok() {
            return Ok(Address(text.to_string()));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let named = !host.is_empty()
            && host.len() <= 253
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            && host.bytes().any(|b| b.is_ascii_alphabetic());
        match port.parse::<u16>() {
            Ok(_) if named => Ok(Address(text.to_string())),
            _ => Err(wrong()),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        Address(address.to_string())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Address {
    /// What it stands for at present, which may take as long as a look-up does.
    ///
    /// # Errors
    ///
    /// The name is unknown, or nobody who knows names answers.
    pub fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{self}: {e}"));
        let found: Vec<SocketAddr> = self.0.to_socket_addrs().map_err(named)?.collect();
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{self}: has no address")));
        }
        Ok(found)
    }

    /// The first of these for which something can be done; if it can be for none, why not for the last one.
    ///
    /// # Errors
    ///
    /// See [`Address::resolve`], and what `attempt` says.
    pub fn first<T>(&self, attempt: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
        let mut last = Err(io::ErrorKind::NotFound.into());
        for found in self.resolve()? {
            last = attempt(found);
            if last.is_ok() {
                break;
            }
        }
        last
    }

    /// The same with another host: the port of this one, on whatever a server is told to listen.
    ///
    /// # Errors
    ///
    /// `host` is no host.
    pub fn with_host(&self, host: &str) -> Result<Address, String> {
        let (_, port) = self.0.rsplit_once(':').unwrap_or_default();
        let text = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        text.parse()
    }
}

/// Looks names up without making the caller wait.
pub struct Resolver {
    /// What has been asked, and the answer once it has come.
    asked: Arc<Mutex<HashMap<Address, Option<Found>>>>,
    waker: Arc<Waker>,
}

type Found = io::Result<Vec<SocketAddr>>;

impl Resolver {
    /// `waker` is woken whenever an answer has come.
    pub fn new(waker: Arc<Waker>) -> Resolver {
        Resolver { asked: Arc::default(), waker }
    }

    /// What an address stands for; `None` while that is being looked up. Each answer is given once: who asks again wants to
    /// know anew.
    ///
    /// # Errors
    ///
    /// See [`Address::resolve`]; or there was no thread for it.
    pub fn resolve(&self, address: &Address) -> Option<Found> {
        if let Ok(literal) = address.0.parse() {
            return Some(Ok(vec![literal]));
        }
        let mut asked = self.asked.lock();
        if let Some(answer) = asked.get_mut(address) {
            let answer = answer.take();
            if answer.is_some() {
                asked.remove(address);
            }
            return answer;
        }
        asked.insert(address.clone(), None);
        drop(asked);
        self.look_up(address).err().map(Err)
    }

    fn look_up(&self, address: &Address) -> io::Result<()> {
        let (asked, waker, name) = (self.asked.clone(), self.waker.clone(), address.clone());
        let thread = std::thread::Builder::new().name("names".into()).spawn(move || {
            let found = name.resolve();
            asked.lock().insert(name, Some(found));
            // The loop is gone only if nobody waits any more.
            let _ = waker.wake();
        });
        thread.map(drop).inspect_err(|_| _ = self.asked.lock().remove(address))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mio::{Events, Poll, Token};

    use super::*;

    #[test]
    fn hosts_and_ports_are_told_from_anything_else() {
        for good in ["127.0.0.1:1", "[::1]:7001", "bank-1.example:65535", "s_1:0", "localhost:80"] {
            assert_eq!(good.parse::<Address>().map(|a| a.to_string()), Ok(good.to_string()));
        }
        for bad in
            ["", "localhost", ":80", "a:", "a:65536", "a b:1", "1.2.3:80", "::1:80", "http://a:1", "a:b:1"]
        {
            let text = bad.parse::<Address>().expect_err(bad);
            assert!(text.starts_with(&format!("{bad:?}: must be an address")), "{text}");
        }
        let address: Address = "bank-1:7001".parse().expect("an address");
        assert_eq!(address.with_host("0.0.0.0").map(|a| a.to_string()), Ok("0.0.0.0:7001".into()));
        assert_eq!(address.with_host("::").map(|a| a.to_string()), Ok("[::]:7001".into()));
        assert!(address.with_host("no host").is_err());
    }

    #[test]
    fn a_name_is_looked_up_beside_the_loop_and_anew_each_time() {
        let mut poll = Poll::new().expect("a poll");
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).expect("a waker"));
        let resolver = Resolver::new(waker);
        let literal: Address = "127.0.0.1:80".parse().expect("an address");
        assert_eq!(resolver.resolve(&literal).map(|r| r.expect("literal").len()), Some(1));
        for (name, known) in
            [("localhost:80", true), ("localhost:80", true), ("no-such-host.invalid:80", false)]
        {
            let name: Address = name.parse().expect("an address");
            assert!(resolver.resolve(&name).is_none() && resolver.resolve(&name).is_none());
            let mut events = Events::with_capacity(4);
            while events.is_empty() {
                poll.poll(&mut events, Some(Duration::from_secs(60))).expect("a poll");
            }
            let found = resolver.resolve(&name).expect("it was woken for the answer");
            assert_eq!(found.is_ok(), known, "{found:?}");
        }
    }
}
