//! The coordinators of the world: what they are asked, what they send, and what they were told.

use std::collections::BTreeMap;

use crate::sim::clock::Clock;
use crate::sim::coverage::Seen;
use crate::sim::network::{Packet, Place};
use crate::sim::text;
use crate::sim::world::{Options, SPIN_LIMIT, World};
use crate::txn::message::Request;
use crate::txn::{self, Coordinator, Found, Op, Outcome};
use crate::types::{NodeId, Reason, Slot, Time, TxnId};

/// What a client asked for and has heard so far.
#[derive(Debug)]
pub struct Asked {
    pub op: Op,
    /// What was decided in the account's shard when a read began.
    since: Slot,
    /// Whether a transfer of an id had committed when somebody began to ask about it.
    committed: bool,
    pub outcomes: Vec<Outcome>,
    /// When it was asked, and answered for good: moments of the world's one order.
    pub invoked: u64,
    pub answered: Option<u64>,
}

impl Asked {
    pub fn is_answered(&self) -> bool {
        self.outcomes.last().is_some_and(|o| *o != Outcome::Unknown)
    }
}

pub struct Client {
    coordinator: Coordinator,
    pub(super) inbox: Vec<txn::Input>,
    /// Stands still; what arrives waits.
    pub paused: bool,
    pub asked: BTreeMap<u64, Asked>,
    pub clock: Clock,
    /// It takes over from one that died.
    successor: bool,
    spinning: u32,
}

impl World {
    /// A new coordinator; it has no session yet.
    pub fn add_client(&mut self) -> u32 {
        let id = self.next_client;
        self.next_client += 1;
        let Options { topology, timeouts, limits, odd_clocks, .. } = self.options;
        let shown = if odd_clocks { self.rng.below(1 << 40) } else { 0 };
        let clock = Clock::new(Time(shown));
        let client = Client {
            coordinator: Coordinator::new(topology, timeouts, clock.local(self.now)).with_limits(limits),
            inbox: Vec::new(),
            paused: false,
            asked: BTreeMap::new(),
            clock,
            successor: !self.departed.is_empty(),
            spinning: 0,
        };
        self.clients.insert(id, client);
        self.wake(Place::Client(id), self.now);
        id
    }

    /// The coordinator is gone for good.
    pub fn kill_client(&mut self, id: u32) {
        self.note(|| format!("K{id} dies"));
        self.hash.add(&("dies", self.now, id));
        if let Some(client) = self.clients.remove(&id) {
            self.coverage.see_if(client.coordinator.session().is_none(), Seen::DiedUnopened);
            for asked in client.asked.values().filter(|a| !a.is_answered()) {
                let Op::Transfer(transfer) = asked.op else { continue };
                let step = self.checker.step_of(id, transfer);
                step.into_iter().for_each(|step| self.coverage.see(step));
            }
            self.departed.extend(client.asked.into_values().map(|asked| (id, asked)));
        }
        self.wakes.remove(&Place::Client(id));
        self.drop_connections(Place::Client(id));
    }

    pub fn pause_client(&mut self, id: u32, paused: bool) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.paused = paused;
            let open = client.asked.values().filter(|a| !a.is_answered());
            let mut transfers = open.filter_map(|a| match a.op {
                Op::Transfer(transfer) => Some(transfer),
                _ => None,
            });
            let overtaken = transfers.any(|t| self.checker.is_over(id, t));
            self.coverage.see_if(!paused && overtaken, Seen::Zombie);
            self.note(|| format!("K{id} {}", if paused { "stands still" } else { "goes on" }));
            self.wake(Place::Client(id), self.now);
        }
    }

    /// Whether a client still has to be told something: not if it heard that nobody knows, and nobody ever will.
    pub fn is_waiting(&self, id: u32, asked: &Asked) -> bool {
        let forgotten = match asked.op {
            Op::Transfer(transfer) => self.checker.is_forgotten(id, transfer),
            _ => false,
        };
        let unknown = asked.outcomes.last() == Some(&Outcome::Unknown);
        // Whoever named it asks again; what was never sent is not known to be unsent by others.
        let named = matches!(asked.op, Op::Named { .. }) && unknown;
        !asked.is_answered() && !named && (!forgotten || !unknown)
    }

    pub fn submit(&mut self, id: u32, op: Op) -> u64 {
        let since = match op {
            Op::Read(account) => self.options.topology.shard_of(account).map(|s| self.checker.decided(s)),
            _ => None,
        };
        let committed = match op {
            Op::Lookup(id) => self.checker.has_committed(id),
            _ => false,
        };
        let tag = self.next_tag;
        self.next_tag += 1;
        let client = self.clients.get_mut(&id).expect("only living clients are asked");
        let (since, invoked) = (since.unwrap_or_default(), self.moment);
        self.moment += 1;
        client
            .asked
            .insert(tag, Asked { op, since, committed, outcomes: Vec::new(), invoked, answered: None });
        client.inbox.push(txn::Input::Submit { tag, op });
        self.wake(Place::Client(id), self.now);
        tag
    }

    pub fn hint(&mut self, id: u32, server: NodeId) {
        self.tell(Place::Client(id), txn::Input::Hint(server));
    }

    pub(super) fn client_turn(&mut self, id: u32) {
        let now = self.now;
        let Some(client) = self.clients.get_mut(&id).filter(|c| !c.paused) else { return };
        let (clock, successor) = (client.clock, client.successor);
        let local = clock.local(now);
        let mut out = txn::Output::default();
        client.spinning = if client.inbox.is_empty() { client.spinning + 1 } else { 0 };
        for input in std::mem::take(&mut client.inbox) {
            client.coordinator.step(local, input, &mut out);
        }
        client.coordinator.step(local, txn::Input::TurnEnd, &mut out);
        let deadline = client.coordinator.next_deadline().map(|at| clock.global(at, now));
        if deadline.is_none_or(|at| at > now) {
            client.spinning = 0;
        }
        assert!(
            client.spinning < SPIN_LIMIT,
            "K{id} spins: its deadline {deadline:?} never moves at {now:?}"
        );
        let me = Place::Client(id);
        for event in out.events {
            let opened = matches!(event, txn::Event::SessionOpened(_));
            self.coverage.see_if(successor && opened, Seen::NewSession);
            self.coverage.see_if(event == txn::Event::SessionRenewed, Seen::SessionRenewed);
            match event {
                txn::Event::SessionLost { expired: false, .. } => self.coverage.see(Seen::ClosedToldLive),
                txn::Event::SessionLost { expired: true, .. } => self.coverage.see(Seen::ExpiredToldLive),
                txn::Event::Forgotten { .. } => self.coverage.see(Seen::Forgotten),
                _ => {}
            }
            self.note(|| format!("K{id} {event:?}"));
        }
        for (to, request) in out.send {
            self.note(|| format!("K{id} → {to}  {}", text::request(&request)));
            if let Request::Submit { blocks, .. } = &request {
                self.checker.sent(id, blocks);
            }
            if let Some(connection) = self.open_connection(me, to) {
                self.remember_probe(connection, &request);
                self.send(now, me, Place::Server(to), Packet::Request(connection, request));
            }
        }
        out.connect.into_iter().for_each(|to| self.connect(me, to));
        for txn::Answer { tag, outcome, .. } in out.answers {
            self.answered(id, tag, outcome);
        }
        if let Some(at) = deadline {
            self.wake(me, at);
        }
    }

    fn answered(&mut self, id: u32, tag: u64, outcome: Outcome) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let asked = client.asked.get_mut(&tag).expect("T3: answers name what was asked");
        assert!(
            !asked.is_answered(),
            "T3: {:?} was answered twice: {:?}, {outcome:?}",
            asked.op,
            asked.outcomes
        );
        let was_unknown = asked.outcomes.last() == Some(&Outcome::Unknown);
        asked.outcomes.push(outcome.clone());
        if asked.is_answered() {
            asked.answered = Some(self.moment);
            self.moment += 1;
            self.coverage.see_if(was_unknown, Seen::UnknownResolved);
        }
        let (op, since, committed) = (asked.op, asked.since, asked.committed);
        match (&op, &outcome) {
            (_, Outcome::Aborted(Reason::NoQuorum)) => self.coverage.see(Seen::NoQuorum),
            (_, Outcome::Aborted(Reason::StorageFull)) => self.coverage.see(Seen::StorageFull),
            (_, Outcome::Aborted(Reason::NoSession)) => self.coverage.see(Seen::NoSession),
            (Op::Read(_), Outcome::Aborted(Reason::LockContention)) => self.coverage.see(Seen::ReadGaveUp),
            (_, Outcome::Aborted(Reason::LockContention)) => self.coverage.see(Seen::LockContention),
            (_, Outcome::Aborted(Reason::InsufficientBalance)) => {
                self.coverage.see(Seen::InsufficientBalance);
            }
            _ => {}
        }
        self.note(|| match op {
            Op::Transfer(t) => format!("K{id} {t} {}", outcome_text(&outcome)),
            Op::Read(a) => format!("K{id} ({a}) {}", outcome_text(&outcome)),
            Op::Named { id: txn, transfer } => format!("K{id} {txn} {transfer} {}", outcome_text(&outcome)),
            Op::Lookup(txn) => format!("K{id} {txn}? {}", outcome_text(&outcome)),
            _ => format!("K{id} {}", outcome_text(&outcome)),
        });
        match (op, outcome) {
            (Op::Transfer(transfer), outcome) => self.checker.told(id, transfer, &outcome),
            (Op::Named { id: txn, transfer }, outcome) => {
                self.checker.told_named(id, txn, transfer, &outcome);
            }
            (Op::Lookup(txn), Outcome::Found(found)) => self.found(txn, committed, found),
            (Op::Open, Outcome::Opened(session)) => self.opened.push(session),
            (Op::Read(account), Outcome::Balance(balance)) => self.checker.read(account, balance, since),
            _ => {}
        }
    }
}

impl World {
    /// A client asked what became of an id, of which something had `committed` when it began to ask, or nothing.
    fn found(&mut self, id: TxnId, committed: bool, found: Found) {
        self.coverage.see_if(matches!(found, Found::Committed | Found::Aborted(_)), Seen::LookedUp);
        self.coverage.see_if(found == Found::InDoubt, Seen::LookedUpInDoubt);
        let agrees = self.checker.bears_out(id, committed, found);
        assert!(agrees, "T2: {id} was found {found}; it had committed before: {committed}");
    }
}

fn outcome_text(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Committed => "committed".into(),
        Outcome::Aborted(reason) => format!("aborted: {reason}"),
        Outcome::Unknown => "unknown".into(),
        Outcome::Balance(balance) => format!("balance {balance}"),
        Outcome::Confirmed(_) => "leaders confirmed".into(),
        Outcome::Settled => "settled".into(),
        Outcome::Opened(session) => format!("opened {session}"),
        Outcome::Found(found) => found.to_string(),
        other => format!("{other:?}"),
    }
}
