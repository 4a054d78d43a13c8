//! The shapes of partitions. Most systems survive two halves; it is the other shapes that make elections loop.

use crate::sim::coverage::Seen;
use crate::sim::network::Place;
use crate::sim::world::World;
use crate::types::NodeId;

impl World {
    fn places(&self) -> Vec<Place> {
        let mut places: Vec<Place> = self.servers.keys().map(|id| Place::Server(*id)).collect();
        places.extend(self.clients.keys().map(|id| Place::Client(*id)));
        places
    }

    /// Cuts links in a random shape.
    pub fn partition(&mut self) {
        let places = self.places();
        let count = places.len();
        let spare_clients = self.rng.one_in(2);
        // Half of all partitions are among servers only: then an old leader's clients still find it.
        let spared = |place: &Place| matches!(place, Place::Client(_)) && spare_clients;
        let lonely = self.rng.below(count as u64) as usize;
        let other = self.rng.below(count as u64) as usize;
        let sides: Vec<bool> = places.iter().map(|_| self.rng.one_in(2)).collect();
        let topology = self.options.topology;
        // Position on the ring of its cluster; coordinators reach everybody.
        let seat = |place: &Place| match place {
            Place::Server(id) => {
                let shard = topology.shard_of_server(*id);
                Some((shard, usize::from(id.0 - 1) % usize::from(topology.servers_per_cluster)))
            }
            Place::Client(_) => None,
        };
        let beside = |a: usize, b: usize| {
            let size = usize::from(topology.servers_per_cluster);
            // A ring of three cuts nothing: there it is a line.
            a.abs_diff(b) == 1 || size > 3 && a.abs_diff(b) == size - 1
        };
        let shape = [
            Seen::CutHalves,
            Seen::CutIsolated,
            Seen::CutBridge,
            Seen::CutRing,
            Seen::CutOneWay,
            Seen::CutLink,
        ][self.rng.below(6) as usize];
        self.note(|| format!("partition: {}", shape.text()));
        self.hash.add(&("partition", self.now, shape as u32));
        for (i, a) in places.iter().enumerate() {
            for (j, b) in places.iter().enumerate() {
                let cut = match shape {
                    Seen::CutHalves => sides[i] != sides[j],
                    Seen::CutIsolated => (i == lonely) != (j == lonely),
                    Seen::CutBridge => sides[i] != sides[j] && i != lonely && j != lonely,
                    Seen::CutRing => match (seat(a), seat(b)) {
                        (Some((s, x)), Some((t, y))) => s == t && !beside(x, y),
                        _ => false,
                    },
                    Seen::CutOneWay => i == lonely && sides[j],
                    _ => (i, j) == (lonely, other) || (j, i) == (lonely, other),
                };
                if cut && i != j && !spared(a) && !spared(b) {
                    self.network.cut_as(*a, *b, shape);
                }
            }
        }
    }

    /// The peers of a server, each with the way there and the way back.
    fn links(&self, id: NodeId) -> impl Iterator<Item = [(Place, Place); 2]> + use<> {
        let topology = self.options.topology;
        let peers = topology.servers_of(topology.shard_of_server(id)).filter(move |peer| *peer != id);
        peers.map(move |peer| {
            let (me, peer) = (Place::Server(id), Place::Server(peer));
            [(me, peer), (peer, me)]
        })
    }

    /// Its peers' way to a server becomes slower by so much.
    pub fn lag_behind(&mut self, id: NodeId, by_us: u64) {
        for [_, (from, to)] in self.links(id) {
            self.network.lag_behind(from, to, by_us);
        }
    }

    /// Its peers hear no more from a server, which still hears them.
    pub fn silence(&mut self, id: NodeId) {
        self.note(|| format!("the others of its cluster hear no more from {id}"));
        for [(from, to), _] in self.links(id) {
            self.network.cut_as(from, to, Seen::CutSilent);
        }
    }

    /// Two places whose link begins to come and go, in one direction or both.
    pub fn flapping_pair(&mut self) -> Vec<(Place, Place)> {
        let places = self.places();
        let a = places[self.rng.below(places.len() as u64) as usize];
        let b = places[self.rng.below(places.len() as u64) as usize];
        if a == b {
            return Vec::new();
        }
        self.note(|| format!("the link from {a} to {b} comes and goes"));
        if self.rng.one_in(2) { vec![(a, b)] } else { vec![(a, b), (b, a)] }
    }

    /// Two places, one of them a server, whose connections break.
    pub fn rupture(&mut self) {
        let places = self.places();
        let servers = self.servers.len() as u64;
        let a = places[self.rng.below(servers) as usize];
        let b = places[self.rng.below(places.len() as u64) as usize];
        if a != b {
            self.note(|| format!("the connections between {a} and {b} break"));
            self.break_link(a, b);
        }
    }
}
