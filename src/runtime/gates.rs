//! Where connections come in: one listener for everybody, or one for the servers of the cluster and one for the others.

use std::io;
use std::time::Duration;

use mio::net::TcpListener;
use mio::{Interest, Registry, Token};

use crate::net::{Accepted, SpareFd, accept};
use crate::runtime::conns::{Conns, Door};
use crate::types::{NodeId, Time};

/// How long accepting rests when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

struct Gate {
    token: Token,
    listener: TcpListener,
    door: Door,
    /// When to accept again, if somebody may be waiting.
    accept_at: Option<Time>,
}

/// The listeners of one server.
pub struct Gates {
    gates: Vec<Gate>,
    spare: SpareFd,
}

impl Gates {
    /// Listens, under one token for each door.
    ///
    /// # Errors
    ///
    /// There is no descriptor left, or the system does not let a listener be watched.
    pub fn open(
        registry: &Registry,
        tokens: impl IntoIterator<Item = Token>,
        doors: Vec<(TcpListener, Door)>,
        now: Time,
    ) -> io::Result<Gates> {
        let mut gates = Vec::new();
        for (token, (mut listener, door)) in tokens.into_iter().zip(doors) {
            registry.register(&mut listener, token, Interest::READABLE)?;
            gates.push(Gate { token, listener, door, accept_at: Some(now) });
        }
        Ok(Gates { gates, spare: SpareFd::reserve()? })
    }

    /// Somebody may be waiting at this listener.
    pub fn knock(&mut self, token: Token, now: Time) {
        self.gates.iter_mut().filter(|gate| gate.token == token).for_each(|gate| gate.accept_at = Some(now));
    }

    /// When accepting is to be tried again.
    pub fn due(&self) -> Option<Time> {
        self.gates.iter().filter_map(|gate| gate.accept_at).min()
    }

    /// Takes in whoever waits.
    pub fn accept(&mut self, me: NodeId, now: Time, conns: &mut Conns) {
        for gate in self.gates.iter_mut().filter(|gate| gate.accept_at.is_some_and(|at| at <= now)) {
            gate.accept_at = gate.accept(me, now, conns, &mut self.spare);
        }
    }
}

impl Gate {
    /// Returns when to go on, if it could not take in all.
    fn accept(&self, me: NodeId, now: Time, conns: &mut Conns, spare: &mut SpareFd) -> Option<Time> {
        loop {
            match accept(&self.listener) {
                Accepted::Stream(stream, _) => conns.accepted(now, stream, self.door),
                Accepted::Lost(e) => log::debug!("{me}: a connection was lost before it was accepted: {e}"),
                Accepted::Drained => return None,
                Accepted::Pause(e) => {
                    log::warn!("{me}: out of descriptors, accepting rests: {e}");
                    if let Err(e) = spare.turn_away(&self.listener) {
                        log::warn!("{me}: could not turn a connection away: {e}");
                    }
                    return Some(now + ACCEPT_PAUSE);
                }
            }
        }
    }
}
