//! Who can talk to whom, how long it takes, and what is lost on the way.
//!
//! A link is a directed pair of places. By default it is in order, like TCP; a seed may switch on loss, duplication,
//! reordering and stragglers. Requests and answers are never duplicated, because no TCP connection does that; between
//! the servers of a cluster everything may happen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::paxos::Message;
use crate::txn::message::{Request, Response};
use crate::types::{ClientId, NodeId, Time};
use crate::workload::SplitMix64;

/// An end of a link.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Place {
    Server(NodeId),
    /// One life of a coordinator.
    Client(u32),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Server(server) => write!(f, "{server}"),
            Place::Client(number) => write!(f, "K{number}"),
        }
    }
}

/// What travels. Everything but [`Packet::Peer`] belongs to a connection, numbered by [`ClientId`].
#[derive(Clone, Debug)]
pub enum Packet {
    Peer(Message),
    Open(ClientId),
    Opened(ClientId),
    Request(ClientId, Request),
    Response(ClientId, Response),
    /// The opener is gone.
    Close(ClientId),
    /// The server is gone, or was never there.
    Reset(ClientId),
}

/// How links behave. Chances are per thousand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Weather {
    pub min_delay_us: u64,
    pub max_delay_us: u64,
    pub loss: u64,
    pub duplication: u64,
    /// Whether a packet may overtake another of its link.
    pub reorder: bool,
    /// The chance that a packet takes up to three seconds, and is overtaken by everything.
    pub straggle: u64,
}

impl Weather {
    pub const CALM: Weather = Weather {
        min_delay_us: 500,
        max_delay_us: 500,
        loss: 0,
        duplication: 0,
        reorder: false,
        straggle: 0,
    };
}

#[derive(Debug)]
pub struct Network {
    pub weather: Weather,
    /// Directed links that swallow everything.
    cut: BTreeSet<(Place, Place)>,
    /// Directed links whose packets wait until they are released.
    held: BTreeSet<(Place, Place)>,
    pub parked: Vec<(Place, Place, Packet)>,
    /// When the last packet of a link arrives: the next one arrives later.
    last: BTreeMap<(Place, Place), Time>,
}

impl Network {
    pub fn new(weather: Weather) -> Network {
        Network {
            weather,
            cut: BTreeSet::new(),
            held: BTreeSet::new(),
            parked: Vec::new(),
            last: BTreeMap::new(),
        }
    }

    pub fn cut(&mut self, from: Place, to: Place) {
        self.cut.insert((from, to));
    }

    /// Every link works again. What was swallowed stays lost.
    pub fn mend(&mut self) {
        self.cut.clear();
    }

    pub fn is_cut(&self, from: Place, to: Place) -> bool {
        self.cut.contains(&(from, to))
    }

    pub fn hold(&mut self, from: Place, to: Place) {
        self.held.insert((from, to));
    }

    /// Links hold nothing back any more; returns what waited, in order.
    pub fn release(&mut self) -> Vec<(Place, Place, Packet)> {
        self.held.clear();
        std::mem::take(&mut self.parked)
    }

    /// When a packet that is sent at `at` arrives: never, once, or twice.
    pub fn route(
        &mut self,
        rng: &mut SplitMix64,
        at: Time,
        from: Place,
        to: Place,
        packet: Packet,
    ) -> Vec<(Time, Packet)> {
        if self.is_cut(from, to) {
            return Vec::new();
        }
        if self.held.contains(&(from, to)) {
            self.parked.push((from, to, packet));
            return Vec::new();
        }
        let chance = |rng: &mut SplitMix64, per_thousand| per_thousand > 0 && rng.below(1000) < per_thousand;
        // Connections are made and broken by other means than lost packets.
        let payload = matches!(packet, Packet::Peer(_) | Packet::Request(..) | Packet::Response(..));
        if payload && chance(rng, self.weather.loss) {
            return Vec::new();
        }
        let twice = matches!(packet, Packet::Peer(_)) && chance(rng, self.weather.duplication);
        let mut arrivals = Vec::new();
        for _ in 0..1 + u32::from(twice) {
            let Weather { min_delay_us, max_delay_us, reorder, straggle, .. } = self.weather;
            let delay = min_delay_us + rng.below(max_delay_us - min_delay_us + 1);
            let mut arrival = Time(at.0 + delay);
            if payload && chance(rng, straggle) {
                arrival.0 += rng.below(3_000_000);
            } else if !(payload && reorder) {
                let last = self.last.entry((from, to)).or_default();
                arrival = arrival.max(Time(last.0 + 1));
                *last = arrival;
            }
            arrivals.push((arrival, packet.clone()));
        }
        arrivals
    }
}
