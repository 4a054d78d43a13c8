//! Schedules that once broke the coordinator, told frame by frame.

mod answers;
mod named;
mod sessions;
mod space;

use std::time::Duration;

use super::message::{Refusal, Request, Response};
use super::*;
use crate::bank::command::{self, Command, Range};
use crate::bank::{Bank, BlockResult, Status};
use crate::config::limits::RECOVERIES;
use crate::config::{Timeouts, Topology};
use crate::paxos::Replica;
use crate::shard::{self, Shard};
use crate::types::{
    AccountId, Ballot, ClientId, NodeId, Reason, Session, ShardId, Slot, Time, Transfer, TxnId, Value,
};

const S1: NodeId = NodeId(1);
const S2: NodeId = NodeId(2);
/// Two clusters of one server each; S1 holds the accounts 1 and 2, S2 holds 3 and 4.
const TOPOLOGY: Topology = Topology { clusters: 2, servers_per_cluster: 1, accounts: 4, initial_balance: 10 };
const START: Time = Time(10_000_000);

/// A coordinator and the servers that answer its probes; everything else is answered by the test.
struct World {
    coordinator: Coordinator,
    now: Time,
    leading: Vec<NodeId>,
}

impl World {
    fn new(coordinator: Coordinator) -> World {
        let mut world = World { coordinator, now: START, leading: vec![S1, S2] };
        world.turn([Input::Connected(S1), Input::Connected(S2)]);
        world
    }

    /// A coordinator that recovers for somebody else.
    fn recoverer() -> World {
        World::new(Coordinator::recoverer(TOPOLOGY, Timeouts::default(), START))
    }

    /// A client whose session is open and has one transfer behind it, of which S1 does not know that it may forget it.
    fn client() -> World {
        let mut world = World::new(Coordinator::new(TOPOLOGY, Timeouts::default(), START));
        let out = world.turn([submit(0, 1, 2)]);
        let opened = BlockResult::Opened(Session::new(ShardId(1), 1));
        let out = world.turn([done(&out.send, S1, vec![opened])]);
        let out = world.turn([done(&out.send, S1, vec![one(Status::Committed)])]);
        assert_eq!(out.send, []);
        world
    }

    /// A turn, and one more for the answers of leaders that it asked for.
    fn turn(&mut self, inputs: impl IntoIterator<Item = Input>) -> Output {
        let mut out = Output::default();
        let mut all = Output::default();
        let mut inputs: Vec<Input> = inputs.into_iter().collect();
        loop {
            inputs.drain(..).for_each(|input| self.coordinator.step(self.now, input, &mut out));
            self.coordinator.step(self.now, Input::TurnEnd, &mut out);
            let turn = std::mem::take(&mut out);
            all.connect.extend(turn.connect);
            all.answers.extend(turn.answers);
            all.events.extend(turn.events);
            for (to, request) in turn.send {
                match request {
                    Request::Probe { request, .. } if self.leading.contains(&to) => {
                        let (ballot, decided) = (Ballot::new(1, to), Slot(1));
                        let response = Response::Leading { request, ballot, decided };
                        inputs.push(Input::Response { from: to, response });
                    }
                    Request::Probe { .. } => {}
                    request => all.send.push((to, request)),
                }
            }
            if inputs.is_empty() {
                return all;
            }
        }
    }

    /// The same after a pause.
    fn later(&mut self, pause: Duration, inputs: impl IntoIterator<Item = Input>) -> Output {
        self.now = self.now + pause;
        self.turn(inputs)
    }

    /// S2 fails, and the coordinator looks for a leader of its shard in vain.
    fn lose_s2(&mut self) -> Output {
        self.leading.retain(|s| *s != S2);
        let mut all = self.turn([Input::Disconnected(S2)]);
        let out = self.later(Timeouts::default().election() * 2, []);
        assert!(out.events.contains(&Event::NoQuorum { shard: ShardId(2) }), "{:?}", out.events);
        all.events.extend(out.events);
        all.send.extend(out.send);
        all
    }
}

fn submit(tag: u64, from: u64, to: u64) -> Input {
    let transfer = Transfer { from: AccountId(from), to: AccountId(to), amount: 1 };
    Input::Submit { tag, op: Op::Transfer(transfer) }
}

fn txn(seq: u64) -> TxnId {
    TxnId { session: Session::new(ShardId(2), 1), seq }
}

/// S1 has this transaction in doubt.
fn recover(seq: u64) -> Input {
    Input::Recover { id: txn(seq), name: None, participants: [ShardId(1), ShardId(2)], home: ShardId(1) }
}

/// The only frame for `to`, with its number.
fn frame(sent: &[(NodeId, Request)], to: NodeId) -> (u64, &Value) {
    let frames: Vec<_> = sent
        .iter()
        .filter_map(|(server, request)| match request {
            Request::Submit { request, blocks } if *server == to => Some((*request, blocks)),
            _ => None,
        })
        .collect();
    assert_eq!(frames.len(), 1, "one frame for {to} in {sent:?}");
    frames[0]
}

/// The kinds of blocks in the only frame for `to`.
fn kinds(sent: &[(NodeId, Request)], to: NodeId) -> Vec<&'static str> {
    let (_, blocks) = frame(sent, to);
    let kind = |block: Result<Command<'_>, String>| match block.expect("blocks of our own") {
        Command::Open { named: false } => "open",
        Command::Open { named: true } => "open for names",
        Command::Touch { .. } => "touch",
        Command::Mark { .. } => "mark",
        Command::Transfers { .. } => "transfers",
        Command::Prepare { .. } => "prepare",
        Command::Outcome { .. } => "outcome",
        Command::Fence { .. } => "fence",
        Command::Close { .. } => "close",
        Command::Expire { .. } => "expire",
        Command::Rejoin { .. } => "rejoin",
    };
    command::blocks(&blocks.0).map(kind).collect()
}

fn done(sent: &[(NodeId, Request)], from: NodeId, results: Vec<BlockResult>) -> Input {
    Input::Response { from, response: Response::Done { request: frame(sent, from).0, results } }
}

fn busy(sent: &[(NodeId, Request)], from: NodeId) -> Input {
    let response = Response::Refused { request: frame(sent, from).0, why: Refusal::Busy };
    Input::Response { from, response }
}

fn one(status: Status) -> BlockResult {
    BlockResult::pack(status, &[status])
}

/// A shard of one server that leads, with account 1 locked by a transaction whose other participant never answers.
fn locked_shard() -> Shard {
    let timeouts = Timeouts::default();
    let restored = (Ballot::ZERO, Slot::ZERO, Vec::new());
    let replica = Replica::new(S1, vec![S1], timeouts, Time(0), 1, restored);
    let mut shard = Shard::new(S1, TOPOLOGY, timeouts, Time(0), replica, Bank::new(TOPOLOGY, ShardId(1)));
    shard_turn(&mut shard, START, [shard::Input::Timer { random: 1 }]);
    let mut blocks = Vec::new();
    let range = Range { session: txn(1).session, first: 1, count: 1 };
    let transfer = Transfer { from: AccountId(1), to: AccountId(3), amount: 1 };
    command::put_prepare(&mut blocks, range, [ShardId(1), ShardId(2)], &[transfer]);
    let request = Request::Submit { request: 1, blocks: Value::from_slice(&blocks) };
    shard_turn(&mut shard, START, [shard::Input::Request { client: ClientId(1), request }]);
    assert!(shard.bank().is_locked(AccountId(1)) && shard.bank().holds().get(&txn(1)).is_some());
    shard
}

fn shard_turn(
    shard: &mut Shard,
    now: Time,
    inputs: impl IntoIterator<Item = shard::Input>,
) -> Vec<(ClientId, Response)> {
    let mut out = shard::Output::default();
    inputs.into_iter().for_each(|input| shard.step(now, input, &mut out));
    let mut replies = Vec::new();
    loop {
        shard.step(now, shard::Input::TurnEnd, &mut out);
        let turn = std::mem::take(&mut out);
        replies.extend(turn.replies);
        if turn.paxos.after.is_empty() {
            return replies;
        }
        for (from, message) in turn.paxos.after {
            shard.step(now, shard::Input::Peer { from, message }, &mut out);
        }
    }
}

/// A client reads an account that S1 holds locked, and the transaction's other participant, S2, is gone for good. S1
/// answers *lock contention* when the read's time is over; the client had given the request up long before that, sent
/// it again, and so on without end (T6).
#[test]
fn a_read_of_an_account_that_stays_locked_is_sent_once_and_ends() {
    let timeouts = Timeouts::default();
    let mut shard = locked_shard();
    let mut world = World::new(Coordinator::new(TOPOLOGY, timeouts, START));
    world.leading.retain(|s| *s != S2);
    let client = ClientId(2);
    let mut inputs = vec![Input::Disconnected(S2), Input::Submit { tag: 7, op: Op::Read(AccountId(1)) }];
    let (mut reads, mut answers) = (0, Vec::new());
    while world.now < START + timeouts.read() * 4 {
        let out = world.turn(std::mem::take(&mut inputs));
        answers.extend(out.answers.into_iter().map(|a| (world.now, a.tag, a.outcome)));
        let mut requests = vec![];
        for (to, request) in out.send {
            assert_eq!(to, S1);
            reads += usize::from(matches!(request, Request::Read { .. }));
            requests.push(shard::Input::Request { client, request });
        }
        if shard.next_deadline() <= world.now {
            requests.push(shard::Input::Timer { random: 1 });
        }
        let replies = shard_turn(&mut shard, world.now, requests);
        inputs.extend(
            replies
                .into_iter()
                .filter(|(to, _)| *to == client)
                .map(|(_, response)| Input::Response { from: S1, response }),
        );
        if inputs.is_empty() {
            world.now = world.now + Duration::from_millis(5);
        }
    }
    assert_eq!(reads, 1, "the read was sent again; answers: {answers:?}");
    let [(at, 7, Outcome::Aborted(Reason::LockContention))] = answers[..] else {
        panic!("not one answer that the account is locked: {answers:?}")
    };
    let waited = at.since(START);
    assert!(waited >= timeouts.read() && waited < timeouts.read() + timeouts.unreachable(), "{waited:?}");
}

/// The mark that let S1 forget sequence 1 travelled in a frame that S1 refused as busy. It counted as told, so that it
/// was never sent again, and once the window was used up nothing of this session was executed any more (B3).
#[test]
fn a_mark_lost_with_a_refused_frame_is_sent_again() {
    let mut world = World::client();
    let out = world.turn([submit(1, 1, 2)]);
    assert_eq!(kinds(&out.send, S1), ["mark", "transfers"]);
    world.turn([busy(&out.send, S1)]);
    let again = world.later(Duration::from_millis(5), []);
    assert_eq!(kinds(&again.send, S1), ["mark", "transfers"]);
    assert_eq!(frame(&again.send, S1).1, frame(&out.send, S1).1);
}

/// Thousands of transactions of a dead client came due at once, and all of their fences went out in one turn. Whoever
/// is not begun now is asked for again by its shard.
#[test]
fn recoveries_are_begun_up_to_a_limit_and_others_when_those_are_over() {
    let mut world = World::recoverer();
    let many = RECOVERIES as u64 + 44;
    let out = world.turn((1..=many).map(recover));
    assert_eq!(kinds(&out.send, S2).len(), RECOVERIES, "one fence each");
    // The first one was settled by somebody else in the meantime: S2 says YES, S1 has it decided.
    let votes = vec![one(Status::Yes); RECOVERIES];
    let out = world.turn([done(&out.send, S2, votes)]);
    let mut votes = vec![one(Status::Yes); RECOVERIES];
    votes[0] = one(Status::YesCommitted);
    let out = world.turn([done(&out.send, S1, votes)]);
    assert!(out.events.contains(&Event::RecoveryDropped { id: txn(1) }));
    let out = world.turn([recover(many - 1), recover(many)]);
    assert_eq!(kinds(&out.send, S2).iter().filter(|kind| **kind == "fence").count(), 1, "one place was free");
}

/// A server that leads no more went on with the recoveries that it had begun, beside those of the new leader.
#[test]
fn abandoned_recoveries_leave_nothing_behind() {
    let mut world = World::recoverer();
    let first = world.turn((1..=10).map(recover));
    assert_eq!(kinds(&first.send, S2).len(), 10);
    // One half waits for S2's answer, the other for its place in a frame.
    let mut out = Output::default();
    (11..=20).for_each(|seq| world.coordinator.step(world.now, recover(seq), &mut out));
    let out = world.turn([Input::Abandon]);
    let dropped: Vec<Event> = (1..=20).map(|seq| Event::RecoveryDropped { id: txn(seq) }).collect();
    assert_eq!(out.events, dropped);
    assert_eq!(out.send, []);
    assert!(world.coordinator.recovering.is_empty() && world.coordinator.groups.is_empty());
    assert!(world.coordinator.links.iter().all(|l| l.units.is_empty() && l.ready.is_empty()));
    // What was on its way is answered, and nobody waits for it.
    let out = world.turn([done(&first.send, S2, vec![one(Status::Yes); 10])]);
    assert_eq!(out.send, []);
    let out = world.turn([recover(1)]);
    assert_eq!(kinds(&out.send, S2), ["fence"], "it may be begun anew");
}

/// S2 voted for transaction 1, then S1 was asked, then S2 was lost over transaction 2. When S1 refused the frame as
/// busy, the votes of transaction 1 were looked at again, and a second fence joined the first one.
#[test]
fn a_recovery_asks_its_own_shard_once() {
    let mut world = World::recoverer();
    let out = world.turn([recover(1)]);
    let home = world.turn([done(&out.send, S2, vec![one(Status::Yes)])]);
    assert_eq!(kinds(&home.send, S1), ["fence"]);
    let out = world.turn([recover(2)]);
    assert_eq!(kinds(&out.send, S2), ["fence"]);
    let out = world.lose_s2();
    assert!(out.events.contains(&Event::RecoveryDropped { id: txn(2) }));
    world.turn([busy(&home.send, S1)]);
    let again = world.later(Duration::from_millis(5), []);
    assert_eq!(kinds(&again.send, S1), ["fence"]);
}

/// A transfer from account 1 to account 3 is on its way to both shards when S2 is lost: from now on it is fenced, not
/// executed (T8). S2 is back before S1 answers, and S1's answer is that it was busy: with every participant there again,
/// the transfer itself was sent to S1 once more.
#[test]
fn a_fenced_transfer_that_was_refused_is_not_sent_again_as_a_transfer() {
    let mut world = World::client();
    let sent = world.turn([submit(1, 1, 3)]);
    assert_eq!(kinds(&sent.send, S1).last(), Some(&"prepare"));
    assert_eq!(kinds(&sent.send, S2).last(), Some(&"prepare"));
    let out = world.lose_s2();
    assert!(out.events.iter().any(|e| matches!(e, Event::Fencing { .. })), "{:?}", out.events);
    world.leading.push(S2);
    let out = world.turn([Input::Connected(S2)]);
    assert_eq!(kinds(&out.send, S2).last(), Some(&"fence"));
    world.turn([busy(&sent.send, S1)]);
    let again = world.later(Duration::from_millis(5), []);
    assert_eq!(kinds(&again.send, S1).last(), Some(&"fence"));
    assert!(!kinds(&again.send, S1).contains(&"prepare"));
}

/// A block of a fenced transaction that was turned away was sent again as it was, and its client never told anything.
#[test]
fn a_fenced_transfer_that_was_beyond_the_window_is_not_sent_again_as_a_transfer() {
    let mut world = World::client();
    let sent = world.turn([submit(1, 1, 3), Input::Submit { tag: 9, op: Op::Settle }]);
    assert_eq!(kinds(&sent.send, S1), ["mark", "prepare"]);
    let out = world.lose_s2();
    assert!(out.events.iter().any(|event| matches!(event, Event::Fencing { .. })));
    world.turn([done(&sent.send, S1, vec![one(Status::Done), one(Status::Busy)])]);
    let again = world.later(Duration::from_millis(5), []);
    assert_eq!(kinds(&again.send, S1), ["fence"]);
    let out = world.turn([done(&again.send, S1, vec![one(Status::Aborted(Reason::LockContention))])]);
    assert!(!out.answers.is_empty(), "its client waits for nothing any more");
}
