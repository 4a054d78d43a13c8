//! What may happen in a state, and the state that it leads to.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shardpaxosbank::bank::Status;
use shardpaxosbank::config::Timeouts;
use shardpaxosbank::paxos::Message;
use shardpaxosbank::shard::Input;
use shardpaxosbank::txn::message::{Request, Response};
use shardpaxosbank::txn::{self, Coordinator, Op};
use shardpaxosbank::types::{AccountId, ClientId, NodeId, Session, ShardId, Slot, Time, Transfer, TxnId};

use super::disk::Fault;
use super::node::{Node, Sent, Shared};
use super::rules::{self, Rule, Seen, Truth};
use super::state::{Action, Bounds, CLIENT, Client, MODEL, PROBE, Packet, State, recoverer, value};

/// What a pause lasts: longer than a transaction may be in doubt, shorter than a leader's patience where there are
/// followers.
const PAUSE: Duration = Duration::from_secs(3);
/// What a client waits before it believes that nobody answers.
const WAIT: Duration = Duration::from_secs(10);
/// Silence that makes any server campaign.
const SILENCE: Duration = Duration::from_secs(60);

/// A configuration being explored.
pub struct World {
    pub bounds: Bounds,
    /// How often each thing happened, over all transitions.
    pub seen: [AtomicU64; Seen::COUNT],
}

impl World {
    pub fn new(bounds: Bounds) -> World {
        World { bounds, seen: [const { AtomicU64::new(0) }; Seen::COUNT] }
    }

    pub fn saw(&self, seen: Seen) {
        self.seen[seen as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn id(&self) -> TxnId {
        TxnId { session: Session::new(ShardId(1), 1), seq: 1 }
    }

    // ---- the beginning ----

    /// Without a client, servers that know nothing. With one, leaders in every cluster, and the client's prepares on
    /// their way.
    pub fn initial(&self) -> Vec<State> {
        if self.bounds.amounts.is_empty() {
            return vec![self.empty(0)];
        }
        self.bounds.amounts.iter().map(|amount| self.with_client(*amount)).collect()
    }

    fn empty(&self, amount: i64) -> State {
        let Bounds { topology, timeouts, .. } = self.bounds;
        State {
            nodes: topology.servers().map(|s| Shared::new(Node::start(s, topology, timeouts))).collect(),
            net: Vec::new(),
            client: None,
            left: self.bounds.budget,
            truth: topology.shards().map(|s| Shared::new(Truth::new(topology, s))).collect(),
            told: None,
            refused: Vec::new(),
            cut: Vec::new(),
            asked: None,
            amount,
            broken: Vec::new(),
        }
    }

    fn with_client(&self, amount: i64) -> State {
        let topology = self.bounds.topology;
        let mut state = self.empty(amount);
        for shard in topology.shards() {
            let servers: Vec<NodeId> = topology.servers_of(shard).collect();
            self.campaign(&mut state, servers[0], *servers.last().expect("a cluster has servers"), None);
            self.deliver_all(&mut state);
        }
        let clock = Time::default();
        let coordinator = Coordinator::new(topology, Timeouts::default(), clock);
        state.client = Some(Shared::new(Client { coordinator, clock }));
        let (from, to) = (AccountId(1), AccountId(topology.accounts));
        let op = Op::Transfer(Transfer { from, to, amount });
        let inputs = topology.servers().map(txn::Input::Connected);
        self.client_turn(&mut state, inputs.chain([txn::Input::Submit { tag: 1, op }]).collect());
        let session = |state: &State| state.client.as_ref().and_then(|c| c.coordinator.session());
        while session(&state).is_none() {
            assert!(!state.net.is_empty(), "the client opens its session");
            self.deliver(&mut state, 0, false, None);
        }
        self.deliver_but_prepares(&mut state);
        assert!(state.broken.is_empty(), "the beginning is sound: {:?}", state.broken);
        state
    }

    fn deliver_but_prepares(&self, state: &mut State) {
        let other = |p: &Shared<Packet>| !matches!(**p, Packet::Request { from: CLIENT, .. });
        while let Some(packet) = state.net.iter().position(other) {
            self.deliver(state, packet, false, None);
        }
    }

    pub fn deliver_all(&self, state: &mut State) {
        let mut steps = 0;
        while !state.net.is_empty() {
            self.deliver(state, 0, false, None);
            steps += 1;
            assert!(steps < 1000, "messages without end");
        }
    }

    // ---- what may happen ----

    pub fn may_happen(&self, state: &State, actions: &mut Vec<Action>) {
        if !state.broken.is_empty() {
            return;
        }
        let left = state.left;
        let may_crash = |server| left.crashes > 0 && self.bounds.crashing.contains(&server);
        let faults = |server| {
            let faults = self.bounds.faults.iter().map(|fault| Some(*fault));
            [None].into_iter().chain(faults.filter(move |_| may_crash(server)))
        };
        let candidates = self.bounds.campaigners.len() - usize::from(left.campaigns);
        let candidates = self.bounds.campaigners.get(candidates);
        for packet in 0..state.net.len() {
            let to = state.net[packet].server();
            let faults: Vec<_> = to.map_or(vec![None], |to| faults(to).collect());
            actions.extend(faults.into_iter().map(|fault| Action::Deliver { packet, again: false, fault }));
            if left.duplicates > 0 && self.may_come_twice(&state.net[packet]) {
                actions.push(Action::Deliver { packet, again: true, fault: None });
            }
        }
        for node in &state.nodes {
            let server = node.shard.id();
            let mut with_faults = |action: &dyn Fn(Option<Fault>) -> Action| {
                actions.extend(faults(server).map(action));
            };
            if candidates.is_some_and(|c| c.contains(&server)) {
                let shard = self.bounds.topology.shard_of_server(server);
                for granter in self.bounds.topology.servers_of(shard).filter(|g| *g != server) {
                    with_faults(&|fault| Action::Campaign { server, granter, fault });
                }
            }
            let leads = node.shard.replica().is_leader();
            if left.proposals > 0 && leads {
                with_faults(&|fault| Action::Propose { server, fault });
            }
            if left.pauses > 0 && !node.shard.bank().holds().is_empty() && leads {
                with_faults(&|fault| Action::Pause { server, fault });
            }
            if left.probes > 0 && leads {
                actions.push(Action::Probe { server });
            }
            if may_crash(server) {
                actions.push(Action::Crash { server });
            }
            if state.client.is_some() && state.cut.contains(&server) {
                actions.push(Action::Join { server });
            } else if state.client.is_some() && left.cuts > 0 {
                actions.push(Action::Cut { server });
            }
        }
        if state.client.is_some() {
            if left.waits > 0 && !state.cut.is_empty() {
                actions.push(Action::Wait);
            }
            if left.deaths > 0 {
                actions.push(Action::Die);
            }
        }
    }

    /// Between servers anything, and what the client asks for.
    fn may_come_twice(&self, packet: &Packet) -> bool {
        matches!(packet, Packet::Peer { .. } | Packet::Request { from: CLIENT, .. })
    }

    /// The state after an action, or `None` if it cannot happen. A panic of the core is a broken rule like any other.
    pub fn after(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        let done =
            catch_unwind(AssertUnwindSafe(|| self.act(&mut next, action) && self.answer_probes(&mut next)));
        match done {
            Ok(true) => Some(next),
            Ok(false) => None,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
                let mut next = state.clone();
                next.broken.push((Rule::Assertions, text.unwrap_or_default()));
                Some(next)
            }
        }
    }

    fn act(&self, state: &mut State, action: Action) -> bool {
        match action {
            Action::Deliver { packet, again, fault } => {
                state.left.duplicates -= u8::from(again);
                self.deliver(state, packet, again, fault)
            }
            Action::Campaign { server, granter, fault } => {
                state.left.campaigns -= 1;
                self.campaign(state, server, granter, fault)
            }
            Action::Propose { server, fault } => {
                let number = u64::from(self.bounds.budget.proposals - state.left.proposals) + 1;
                state.left.proposals -= 1;
                let request = Request::Submit { request: number, blocks: value(number) };
                self.turn(state, server, vec![Input::Request { client: MODEL, request }], fault)
            }
            Action::Probe { server } => {
                state.left.probes -= 1;
                state.asked = Some(Slot(state.truth[0].values.len() as u64));
                let request = Request::Probe { request: PROBE, campaign: false };
                self.turn(state, server, vec![Input::Request { client: MODEL, request }], None)
            }
            Action::Pause { server, fault } => {
                state.left.pauses -= 1;
                self.pause(state, server, fault)
            }
            Action::Crash { server } => {
                self.saw(Seen::Crash);
                self.restart(state, server);
                true
            }
            Action::Cut { server } => {
                state.left.cuts -= 1;
                state.cut.push(server);
                let lost =
                    |p: &Packet| matches!(p, Packet::Response { from, to: CLIENT, .. } if *from == server);
                state.net.retain(|p| !lost(p));
                self.client_turn(state, vec![txn::Input::Disconnected(server)]);
                true
            }
            Action::Join { server } => {
                state.cut.retain(|s| *s != server);
                self.client_turn(state, vec![txn::Input::Connected(server)]);
                true
            }
            Action::Wait => {
                state.left.waits -= 1;
                self.wait(state);
                true
            }
            Action::Die => {
                state.left.deaths -= 1;
                let yes = |t: &&Shared<Truth>| t.register == Some(Status::Yes);
                if state.truth.iter().filter(yes).count() == 1 {
                    self.saw(Seen::DiedBetweenVotes);
                }
                state.client = None;
                state.cut.clear();
                state.net.retain(|p| !matches!(**p, Packet::Response { to: CLIENT, .. }));
                true
            }
        }
    }

    /// A server's clock moves on.
    pub fn pause(&self, state: &mut State, server: NodeId, fault: Option<Fault>) -> bool {
        self.move_clock(state, server, PAUSE);
        self.turn(state, server, vec![Input::Timer { random: 0 }], fault)
    }

    /// The client's clock moves on.
    pub fn wait(&self, state: &mut State) {
        let Some(client) = &mut state.client else { return };
        let mut moved = Client::clone(client);
        moved.clock = moved.clock + WAIT;
        *client = Shared::new(moved);
        self.client_turn(state, Vec::new());
    }

    fn move_clock(&self, state: &mut State, server: NodeId, by: Duration) {
        if self.bounds.timeouts.election().is_zero() {
            return;
        }
        let mut node = Node::clone(&state.nodes[server.index()]);
        node.clock = node.clock + by;
        state.nodes[server.index()] = Shared::new(node);
    }

    fn restart(&self, state: &mut State, server: NodeId) {
        let mut node = Node::clone(&state.nodes[server.index()]);
        node.restart(self.bounds.topology, self.bounds.timeouts);
        // Nobody answers the recoverer of an earlier life; what it asked for may still arrive.
        state.left.crashes = state.left.crashes.saturating_sub(1);
        let mine = recoverer(&node).0 / 100;
        state.net.retain(|p| !matches!(**p, Packet::Response { to, .. } if to.0 / 100 == mine));
        let alone = self.bounds.topology.servers_per_cluster == 1;
        state.nodes[server.index()] = Shared::new(node);
        if alone {
            // It needs nobody's leave to lead again.
            self.move_clock(state, server, SILENCE);
            self.turn(state, server, vec![Input::Timer { random: 0 }], None);
        }
    }

    /// Pre-vote and the beginning of phase 1. A pre-vote changes nothing at who grants it, so that it happens at once,
    /// with one granter; any other is as good as lost.
    pub fn campaign(&self, state: &mut State, server: NodeId, granter: NodeId, fault: Option<Fault>) -> bool {
        let asks = |state: &State| state.nodes[server.index()].shard.replica().promised();
        let before = asks(state);
        self.move_clock(state, granter, SILENCE);
        let mut asked = Vec::new();
        // A leader steps down at its first time-out, and campaigns at the next.
        for _ in 0..2 {
            self.move_clock(state, server, SILENCE);
            let timer = vec![Input::Timer { random: 0 }];
            if granter == server {
                return self.turn(state, server, timer, fault);
            }
            asked = self.pre_votes(state, server, timer, granter);
            if !asked.is_empty() {
                break;
            }
        }
        let answers = self.pre_votes(state, granter, asked, server);
        assert!(!answers.is_empty(), "a pre-vote is answered");
        self.turn(state, server, answers, fault) && asks(state) > before
    }

    /// A turn without records, of which only the pre-votes for `to` arrive.
    fn pre_votes(&self, state: &mut State, server: NodeId, inputs: Vec<Input>, to: NodeId) -> Vec<Input> {
        let mut node = Node::clone(&state.nodes[server.index()]);
        let turned = node.turn(inputs, None);
        state.nodes[server.index()] = Shared::new(node);
        let for_it = |sent| match sent {
            Sent::Peer(other, message @ (Message::PreVote(_) | Message::PreVoteReply(_))) if other == to => {
                Some(Input::Peer { from: server, message })
            }
            _ => None,
        };
        turned.sent.into_iter().filter_map(for_it).collect()
    }

    fn deliver(&self, state: &mut State, packet: usize, again: bool, fault: Option<Fault>) -> bool {
        let packet = if again { state.net[packet].clone() } else { state.net.remove(packet) };
        match Packet::clone(&packet) {
            Packet::Peer { from, to, message } => {
                self.turn(state, to, vec![Input::Peer { from, message }], fault)
            }
            Packet::Request { from, to, request } => {
                self.turn(state, to, vec![Input::Request { client: from, request }], fault)
            }
            Packet::Response { from, to: CLIENT, response } => {
                self.client_turn(state, vec![txn::Input::Response { from, response }]);
                true
            }
            Packet::Response { from, to, response } => {
                let caller = state.nodes.iter().find(|n| recoverer(n) == to).map(|n| n.shard.id());
                let input = Input::Remote(txn::Input::Response { from, response });
                caller.is_some_and(|server| self.turn(state, server, vec![input], fault))
            }
        }
    }

    /// A server that is a whole cluster is asked whether it leads, and answers, at once: there is nothing to wait for.
    fn answer_probes(&self, state: &mut State) -> bool {
        let probe = |p: &Shared<Packet>| {
            matches!(
                **p,
                Packet::Request { request: Request::Probe { .. }, .. }
                    | Packet::Response { response: Response::Leading { .. }, .. }
            )
        };
        while self.bounds.topology.servers_per_cluster == 1
            && let Some(packet) = state.net.iter().position(probe)
        {
            self.deliver(state, packet, false, None);
        }
        true
    }

    // ---- turns ----

    /// A server's turn. False if the fault did not come to pass, which then is no action of its own.
    fn turn(&self, state: &mut State, server: NodeId, inputs: Vec<Input>, fault: Option<Fault>) -> bool {
        let mut node = Node::clone(&state.nodes[server.index()]);
        let turned = node.turn(inputs, fault);
        if fault.is_some() && !turned.died {
            return false;
        }
        if let Some(what) = turned.unkept {
            state.broken.push((Rule::P1, what));
        }
        let from = recoverer(&node);
        // Also of a server that died: clients may have its answers.
        rules::note_decided(self, state, &node);
        state.nodes[server.index()] = Shared::new(node);
        for sent in turned.sent {
            match sent {
                Sent::Peer(to, message) => self.send_peer(state, server, to, message),
                Sent::Client(to, response) if to == MODEL => rules::note_answer(self, state, &response),
                Sent::Client(to, response) => self.respond(state, server, to, response),
                Sent::Remote(to, request) => state.send(Packet::Request { from, to, request }),
                Sent::Paxos(event) => rules::note_paxos(self, &event),
                Sent::Shard(event) => rules::note_shard(self, &event),
            }
        }
        if turned.died {
            self.saw(match fault {
                Some(Fault::BeforeSync(_)) => Seen::DiedBeforeSync,
                _ => Seen::DiedBeforeRelease,
            });
            self.restart(state, server);
        }
        true
    }

    fn send_peer(&self, state: &mut State, from: NodeId, to: NodeId, message: Message) {
        // Pre-votes happen within `campaign`.
        let lost = matches!(message, Message::PreVote(_) | Message::PreVoteReply(_))
            || (self.bounds.lost)(to, &message);
        if !lost {
            state.send(Packet::Peer { from, to, message });
        }
    }

    fn respond(&self, state: &mut State, from: NodeId, to: ClientId, response: Response) {
        let alive = match to {
            CLIENT => state.client.is_some() && !state.cut.contains(&from),
            _ => state.nodes.iter().any(|n| recoverer(n) == to),
        };
        if alive {
            state.send(Packet::Response { from, to, response });
        }
    }

    /// The client's turn, and what its coordinator's clock wants right after it.
    pub fn client_turn(&self, state: &mut State, inputs: Vec<txn::Input>) {
        let Some(client) = &state.client else { return };
        let mut client = Client::clone(client);
        let mut out = txn::Output::default();
        for input in inputs {
            client.coordinator.step(client.clock, input, &mut out);
        }
        client.coordinator.step(client.clock, txn::Input::TurnEnd, &mut out);
        let soon = client.clock + Duration::from_millis(1);
        while let Some(due) =
            client.coordinator.next_deadline().filter(|due| *due <= soon && *due > client.clock)
        {
            client.clock = due;
            client.coordinator.step(client.clock, txn::Input::TurnEnd, &mut out);
        }
        state.client = Some(Shared::new(client));
        for (to, request) in out.send {
            state.send(Packet::Request { from: CLIENT, to, request });
        }
        for answer in out.answers {
            rules::note_told(self, state, answer.outcome);
        }
    }
}
