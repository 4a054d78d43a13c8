//! Who can talk to whom, how long it takes, and what is lost on the way.
//!
//! A link is a directed pair of places. By default it is in order, like TCP; a seed may switch on loss, duplication,
//! reordering and stragglers. Requests and answers are never duplicated, because no TCP connection does that; between
//! the servers of a cluster everything may happen. Some of their frames are kept and delivered once more, much later;
//! some requests are kept back and delivered only then.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::codec::{self, kind};
use crate::config::limits;
use crate::net;
use crate::paxos::Message;
use crate::sim::coverage::{Coverage, Seen};
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
#[derive(Clone, PartialEq, Hash, Debug)]
pub enum Packet {
    Peer(Message),
    Open(ClientId),
    Opened(ClientId),
    Request(ClientId, Request),
    /// A request whose connection is long gone: a server that stood still reads it from its socket only now.
    Late(Request),
    Response(ClientId, Response),
    /// The opener is gone.
    Close(ClientId),
    /// The server is gone, or was never there.
    Reset(ClientId),
}

impl Packet {
    /// Connections are made and broken by other means than lost packets.
    pub fn is_payload(&self) -> bool {
        matches!(self, Packet::Peer(_) | Packet::Request(..) | Packet::Late(_) | Packet::Response(..))
    }

    /// Sends the payload through its bytes, as sockets do: what comes out is what went in, and half of it is nothing.
    fn check_codec(&self) {
        fn check<T>(message: &T)
        where
            T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + fmt::Debug,
        {
            let mut bytes = Vec::new();
            codec::encode(message, &mut bytes);
            assert_eq!(codec::decode::<T>(&bytes).as_ref(), Ok(message), "P2: the codec changed a message");
            let half = codec::decode::<T>(&bytes[..bytes.len() - 1]);
            assert!(half.is_err(), "P2: a message cut short was taken for {half:?}");
        }
        match self {
            Packet::Peer(message) => check(message),
            Packet::Request(_, request) | Packet::Late(request) => check(request),
            Packet::Response(_, response) => check(response),
            _ => {}
        }
    }

    /// The connection breaks within this frame: the other end reads some of its bytes, which are no frame, and then no more.
    /// How many, the checksum decides.
    pub fn breaks_off(&self) {
        let mut bytes = Vec::new();
        match self {
            Packet::Peer(message) => net::encode(kind::PEER, &mut bytes, |out| codec::encode(message, out)),
            Packet::Request(_, request) | Packet::Late(request) => {
                net::encode(kind::REQUEST, &mut bytes, |out| codec::encode(request, out));
            }
            Packet::Response(_, response) => {
                net::encode(kind::RESPONSE, &mut bytes, |out| codec::encode(response, out));
            }
            _ => return,
        }
        let cut = usize::from(u16::from_le_bytes([bytes[4], bytes[5]])) % bytes.len();
        let mut reader = net::FrameReader::new();
        for byte in &bytes[..cut] {
            reader.space(limits::PEER_FRAME_BYTES)[0] = *byte;
            reader.filled(1);
            let read = reader.next_frame(limits::PEER_FRAME_BYTES);
            assert_eq!(read, Ok(None), "P2: {cut} of {} bytes were taken for a frame", bytes.len());
        }
        assert_eq!(reader.pending_bytes(), cut, "P2: of {cut} bytes of a frame some are missing");
    }
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
    /// The chance that a copy of a frame is kept, to be delivered once more in the far future; or that a request is kept
    /// back until then, because no connection delivers one twice.
    pub keepsakes: u64,
    /// Whether messages travel as bytes. Costly, so only some runs do it.
    pub bytes: bool,
}

impl Weather {
    pub const CALM: Weather = Weather {
        min_delay_us: 500,
        max_delay_us: 500,
        loss: 0,
        duplication: 0,
        reorder: false,
        straggle: 0,
        keepsakes: 0,
        bytes: false,
    };
}

/// Frames that wait for their delivery in the far future.
const KEEPSAKES: usize = 64;

#[derive(Debug)]
pub struct Network {
    pub weather: Weather,
    pub coverage: Coverage,
    /// Directed links that swallow everything, and the shape of the partition that they belong to.
    cut: BTreeMap<(Place, Place), Seen>,
    /// Directed links whose packets wait until they are released.
    held: BTreeSet<(Place, Place)>,
    pub parked: Vec<(Place, Place, Packet)>,
    /// What everything to and from a place takes in addition.
    slow: BTreeMap<Place, u64>,
    /// What everything on a directed link takes in addition.
    lag: BTreeMap<(Place, Place), u64>,
    /// When the last packet of a link that keeps its order arrives: the next one arrives later.
    last: BTreeMap<(Place, Place), Time>,
    /// When the latest packet of a link arrives.
    latest: BTreeMap<(Place, Place), Time>,
    keepsakes: Vec<(Time, Place, Place, Packet)>,
}

impl Network {
    pub fn new(weather: Weather) -> Network {
        Network {
            weather,
            coverage: Coverage::default(),
            cut: BTreeMap::new(),
            held: BTreeSet::new(),
            parked: Vec::new(),
            slow: BTreeMap::new(),
            lag: BTreeMap::new(),
            last: BTreeMap::new(),
            latest: BTreeMap::new(),
            keepsakes: Vec::new(),
        }
    }

    pub fn cut(&mut self, from: Place, to: Place) {
        self.cut_as(from, to, Seen::CutLink);
    }

    pub fn cut_as(&mut self, from: Place, to: Place, shape: Seen) {
        self.cut.insert((from, to), shape);
    }

    pub fn uncut(&mut self, from: Place, to: Place) {
        self.cut.remove(&(from, to));
    }

    /// Every link works again, at its usual speed. What was swallowed stays lost.
    pub fn mend(&mut self) {
        self.cut.clear();
        self.slow.clear();
        self.lag.clear();
    }

    /// Whether this link swallows what it is given.
    pub fn swallows(&mut self, from: Place, to: Place) -> bool {
        let shape = self.cut.get(&(from, to));
        if let Some(shape) = shape {
            self.coverage.see(*shape);
        }
        shape.is_some()
    }

    pub fn slow_down(&mut self, place: Place, by_us: u64) {
        self.slow.insert(place, by_us);
    }

    /// Makes a link slower than it is by so much, up to two seconds.
    pub fn lag_behind(&mut self, from: Place, to: Place, by_us: u64) {
        let lag = self.lag.entry((from, to)).or_default();
        *lag = (*lag + by_us).min(2_000_000);
    }

    pub fn hold(&mut self, from: Place, to: Place) {
        self.held.insert((from, to));
    }

    /// Links hold nothing back any more; returns what waited, in order.
    pub fn release(&mut self) -> Vec<(Place, Place, Packet)> {
        self.held.clear();
        std::mem::take(&mut self.parked)
    }

    /// When the last packet that is on its way arrives.
    pub fn last_arrival(&self) -> Time {
        self.latest.values().max().copied().unwrap_or_default()
    }

    /// Takes out an old frame, as it is delivered in the far future.
    pub fn keepsake(&mut self, rng: &mut SplitMix64, now: Time) -> Option<(Place, Place, Packet)> {
        if self.keepsakes.is_empty() {
            return None;
        }
        let chosen = rng.below(self.keepsakes.len() as u64) as usize;
        let (sent, from, to, packet) = self.keepsakes.swap_remove(chosen);
        let old = now.0 > sent.0 + 1_000_000;
        match packet {
            Packet::Request(_, request) => {
                self.coverage.see_if(old, Seen::RequestFromThePast);
                Some((from, to, Packet::Late(request)))
            }
            packet => {
                self.coverage.see_if(old, Seen::FrameFromThePast);
                Some((from, to, packet))
            }
        }
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
        if self.swallows(from, to) {
            return Vec::new();
        }
        if self.held.contains(&(from, to)) {
            self.parked.push((from, to, packet));
            return Vec::new();
        }
        let weather = self.weather;
        let payload = packet.is_payload();
        if weather.bytes {
            packet.check_codec();
        }
        if payload && chance(rng, weather.loss) {
            self.coverage.see(Seen::FrameLost);
            return Vec::new();
        }
        let repeatable = matches!(packet, Packet::Peer(_) | Packet::Request(..));
        if repeatable && chance(rng, weather.keepsakes) {
            if self.keepsakes.len() == KEEPSAKES {
                self.keepsakes.remove(0);
            }
            self.keepsakes.push((at, from, to, packet.clone()));
            if matches!(packet, Packet::Request(..)) {
                return Vec::new();
            }
        }
        let slow = self.slow.get(&from).max(self.slow.get(&to)).copied().unwrap_or(0);
        self.coverage.see_if(slow > 0, Seen::SlowNetwork);
        let lag = self.lag.get(&(from, to)).copied().unwrap_or(0);
        self.coverage.see_if(lag > 0, Seen::SlowWayBack);
        let twice = matches!(packet, Packet::Peer(_)) && chance(rng, weather.duplication);
        self.coverage.see_if(twice, Seen::FrameTwice);
        let mut arrivals = Vec::new();
        for _ in 0..1 + u32::from(twice) {
            let delay = weather.min_delay_us + rng.below(weather.max_delay_us - weather.min_delay_us + 1);
            let mut arrival = Time(at.0 + delay + slow + lag);
            let straggles = payload && chance(rng, weather.straggle);
            if straggles {
                arrival.0 += rng.below(3_000_000);
                self.coverage.see_if(arrival.0 > at.0 + 1_000_000, Seen::FrameSlow);
            }
            let latest = self.latest.entry((from, to)).or_default();
            if straggles || payload && weather.reorder {
                self.coverage.see_if(arrival < *latest, Seen::FrameOvertaken);
            } else {
                let last = self.last.entry((from, to)).or_default();
                arrival = arrival.max(Time(last.0 + 1));
                *last = arrival;
            }
            *latest = arrival.max(*latest);
            arrivals.push((arrival, packet.clone()));
        }
        arrivals
    }
}

fn chance(rng: &mut SplitMix64, per_thousand: u64) -> bool {
    per_thousand > 0 && rng.below(1000) < per_thousand
}
