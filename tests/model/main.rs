//! Model checking: every schedule within stated bounds, of the code that ships.
//!
//! [`stateright`] explores the states. There is no second description of the protocol: a server of the model is a
//! `Shard` that `drive::turn` steps and `drive::restore` brings back, with its `Replica`, `Bank` and recoverer; the client
//! is the `Coordinator` of the runtime. What the model adds is what surrounds them.
//!
//! * **Disk** ([`disk`]): a log behind the trait `StableLog`, which holds what a restart would find. A property test
//!   compares it with the real log. A turn may end at each of its syncs, before the records are durable (what it had
//!   handed out is on its way) or after (what waited for them is not).
//! * **Network** ([`state`]): a set of messages. Any of them arrives next, or never; some arrive twice. A server that is
//!   down is one that nothing is delivered to, so that a crash and the restart are one action.
//! * **Time** stands still. A server's clock moves when an action says so, and its timers are due then. In a single
//!   cluster all time-outs are zero: any server campaigns at any moment.
//! * **Memory**: what any server ever held as decided, per shard, and the bank that follows from it. The rules ([`rules`])
//!   are checked against that, after every turn. A panic of the core is a broken rule too.
//!
//! A configuration fails when a rule breaks, when something did not happen that must happen somewhere, or when the
//! number of distinct states is not the one that stands here, to the unit. `cargo test` explores small bounds, `make
//! model` the full ones. A change to the core's state changes the numbers; a run says what they are now.
//!
//! # What is left out
//!
//! * The bounds themselves: two slots, three ballots, one transfer; each configuration says its own. Nothing is proved
//!   about what needs more.
//! * A pre-vote is granted at once by one server, chosen freely, within the action that begins a campaign. Pre-votes and
//!   time-outs are about liveness.
//! * Damage of the disk, torn writes, and the bytes of the log: `tests/wal` and the simulator.
//! * Entries read back from disk for a server that lags far behind, windows that are full, sessions that are renewed,
//!   marks that move and sessions that expire (T7), reads that wait for locks (T6).
//! * Connections: a client's break and return; those between servers only lose, delay and repeat. In clusters of one
//!   server the question who leads is answered at once.
//! * T4 is checked where nothing is left to happen, and with everything in flight lost in one of 64 of all states. It
//!   says that a fair continuation resolves everything, not that each does.
//! * States are told apart by 64-bit fingerprints, here and in stateright. (The depth in a report is that of first visits,
//!   which depends on the threads; the numbers of states and transitions do not.)
//! * Recovery between replicated shards, and their changes of leader: the last configuration stops where the coordinator
//!   has died. The simulator goes on from there.

mod check;
mod disk;
mod node;
mod rules;
mod state;
mod world;

use shardpaxosbank::config::{Timeouts, Topology};
use shardpaxosbank::paxos::Message;
use shardpaxosbank::paxos::message::{Accept, Prepare};
use shardpaxosbank::types::{Ballot, NodeId};

use check::{explore, is_full};
use disk::Fault;
use rules::Seen;
use state::{Bounds, Budget};

const S1: NodeId = NodeId(1);
const S2: NodeId = NodeId(2);
const S3: NodeId = NodeId(3);

/// The ends of a turn: a campaign that is won at once has two syncs.
const FAULTS: &[Fault] =
    &[Fault::BeforeSync(0), Fault::AfterSync(0), Fault::BeforeSync(1), Fault::AfterSync(1)];

/// The usual ones, but no session expires.
fn timeouts() -> Timeouts {
    Timeouts { session_idle_timeout_ms: 0, ..Timeouts::default() }
}

/// One cluster of three servers that know nothing yet.
fn cluster(name: &'static str, campaigners: &[&[NodeId]], budget: Budget) -> Bounds {
    Bounds {
        name,
        topology: Topology { clusters: 1, servers_per_cluster: 3, accounts: 2, initial_balance: 10 },
        timeouts: Timeouts { heartbeat_interval_ms: 0, election_timeout_ms: 0, ..timeouts() },
        campaigners: campaigners.iter().map(|c| c.to_vec()).collect(),
        crashing: vec![S1, S2, S3],
        faults: FAULTS,
        lost: |_, message| matches!(message, Message::Heartbeat(_)),
        amounts: vec![],
        budget: Budget { campaigns: campaigners.len() as u8, ..budget },
        must: vec![Seen::Leads, Seen::LeadsAgain, Seen::OldTail, Seen::Done],
    }
}

/// Two shards of one server each, and a client whose prepares are on their way: for a transfer that can be, and for one
/// of more money than there is.
fn shards(name: &'static str, budget: Budget) -> Bounds {
    Bounds {
        name,
        topology: Topology { clusters: 2, servers_per_cluster: 1, accounts: 2, initial_balance: 10 },
        timeouts: timeouts(),
        campaigners: vec![],
        crashing: vec![S1, S2],
        faults: &FAULTS[..2],
        lost: |_, _| false,
        amounts: vec![3, 30],
        budget,
        must: vec![Seen::YesYes, Seen::No, Seen::ToldCommitted, Seen::ToldAborted],
    }
}

/// A first round says nothing that a promise did not; without it a leader talks to those alone that promised.
fn first_heartbeats(_: NodeId, message: &Message) -> bool {
    matches!(message, Message::Heartbeat(m) if m.round < 2)
}

/// S1 reaches S3 alone, then S2 reaches S1; S3 hears of S2 only that it leads.
fn partition(to: NodeId, message: &Message) -> bool {
    let hears_s1 = to == S3;
    match message {
        Message::Heartbeat(m) => m.round < 2 || m.ballot.leader() != Some(S2) || to != S3,
        Message::Prepare(m) => (m.ballot.leader() == Some(S1)) != hears_s1,
        Message::Accept(m) => (m.ballot.leader() == Some(S1)) != hears_s1,
        Message::HeartbeatReply(_) | Message::Refuse(_) => true,
        _ => false,
    }
}

/// S1's proposals reach nobody, S2 reaches S3, and S3 then reaches S1.
fn two_votes(to: NodeId, message: &Message) -> bool {
    match message {
        Message::Prepare(m) => {
            m.ballot.leader() == Some(S2) && to != S3 || m.ballot.leader() == Some(S3) && to != S1
        }
        Message::Accept(m) => m.ballot.leader() == Some(S1),
        Message::Heartbeat(_) | Message::Refuse(_) => true,
        _ => false,
    }
}

/// S1 reaches S2, then, in its second ballot, S3; S2 then reaches S3.
fn returned(to: NodeId, message: &Message) -> bool {
    match message {
        Message::Prepare(Prepare { ballot, .. }) | Message::Accept(Accept { ballot, .. }) => {
            let meant = if *ballot == Ballot::new(1, S1) { S2 } else { S3 };
            to != meant
        }
        Message::Heartbeat(_) | Message::Refuse(_) => true,
        _ => false,
    }
}

#[test]
fn competing_ballots_and_crashes() {
    let (crashes, states) = if is_full() { (1, 1_485_857) } else { (0, 102_922) };
    let budget = Budget { proposals: 2, crashes, ..Budget::default() };
    let mut bounds = cluster("Competing ballots, two slots, crashes", &[&[S1, S2], &[S1, S2]], budget);
    bounds.must.extend([Seen::BothSlots, Seen::Deposed, Seen::CaughtUp, Seen::Unsure]);
    if is_full() {
        bounds.must.extend([Seen::Crash, Seen::DiedBeforeSync, Seen::DiedBeforeRelease]);
    }
    explore(bounds, states);
}

#[test]
fn a_first_leader_that_returns() {
    let (proposals, states) = if is_full() { (1, 332_438) } else { (0, 24_220) };
    let budget = Budget { proposals, ..Budget::default() };
    let mut bounds = cluster("Three ballots, the first leader returns", &[&[S1], &[S2], &[S1]], budget);
    if !is_full() {
        bounds.must = vec![Seen::LeadsAgain, Seen::Deposed];
    }
    explore(bounds, states);
}

#[test]
fn three_servers_campaign() {
    let (proposals, states) = if is_full() { (1, 328_952) } else { (0, 29_468) };
    let budget = Budget { proposals, ..Budget::default() };
    let mut bounds = cluster("Three ballots of three servers", &[&[S1], &[S2], &[S3]], budget);
    if !is_full() {
        bounds.must = vec![Seen::LeadsAgain, Seen::Deposed];
    }
    explore(bounds, states);
}

#[test]
fn repeated_messages() {
    let budget = Budget { proposals: 1, duplicates: 1, ..Budget::default() };
    let (campaigners, states): (&[&[NodeId]], _) =
        if is_full() { (&[&[S1, S2], &[S1, S2]], 111_793) } else { (&[&[S1], &[S2]], 43_797) };
    explore(cluster("Competing ballots, and a message that arrives twice", campaigners, budget), states);
}

#[test]
fn a_leader_that_is_asked_whether_it_leads() {
    let budget = Budget { proposals: 1, probes: 1, ..Budget::default() };
    let (campaigners, states): (&[&[NodeId]], _) =
        if is_full() { (&[&[S1, S2], &[S1, S2]], 765_893) } else { (&[&[S1]], 1_720) };
    let mut bounds = cluster("A leader that is asked whether it leads", campaigners, budget);
    bounds.lost = first_heartbeats;
    bounds.must = vec![Seen::Confirmed, Seen::Resent];
    explore(bounds, states);
}

#[test]
fn a_vote_that_one_follower_alone_holds() {
    let budget = Budget { proposals: 2, probes: 1, crashes: 1, ..Budget::default() };
    let mut bounds =
        cluster("A vote of an old ballot that one follower alone holds", &[&[S1], &[S2]], budget);
    bounds.crashing = vec![S1];
    bounds.faults = &FAULTS[..1];
    bounds.lost = partition;
    bounds.must.push(Seen::DiedBeforeSync);
    explore(bounds, 30_355);
}

#[test]
fn votes_of_two_ballots_for_one_slot() {
    let (crashes, probes, states) = if is_full() { (1, 0, 246_144) } else { (0, 1, 71_940) };
    let budget = Budget { proposals: 2, crashes, probes, ..Budget::default() };
    let mut bounds = cluster("Votes of two ballots for one slot", &[&[S1], &[S2], &[S3]], budget);
    bounds.lost = two_votes;
    explore(bounds, states);
}

#[test]
fn an_acknowledgement_of_an_earlier_ballot() {
    let budget = Budget { proposals: 2, crashes: 1, ..Budget::default() };
    let mut bounds = cluster("An acknowledgement of an earlier ballot", &[&[S1], &[S1], &[S2]], budget);
    bounds.crashing = vec![S1];
    bounds.faults = &FAULTS[..1];
    bounds.lost = returned;
    bounds.must.push(Seen::DiedBeforeSync);
    explore(bounds, 57_252);
}

#[test]
fn a_coordinator_that_dies() {
    let (pauses, duplicates, states) = if is_full() { (2, 1, 402_375) } else { (1, 0, 770) };
    let budget = Budget { deaths: 1, pauses, duplicates, ..Budget::default() };
    let mut bounds = shards("A coordinator that dies, two recoverers, late prepares", budget);
    bounds.must.extend([
        Seen::FenceBeatsPrepare,
        Seen::LatePrepare,
        Seen::DiedBetweenVotes,
        Seen::RecoveryCommits,
        Seen::RecoveryAborts,
        Seen::RecoveryDropped,
    ]);
    explore(bounds, states);
}

#[test]
fn servers_that_crash_in_a_transfer() {
    let (pauses, states) = if is_full() { (2, 200_357) } else { (1, 7_415) };
    let budget = Budget { deaths: 1, pauses, crashes: 1, ..Budget::default() };
    let mut bounds = shards("A coordinator that dies, and servers that crash", budget);
    let crashes = [Seen::Crash, Seen::DiedBeforeSync, Seen::DiedBeforeRelease];
    bounds.must.extend([Seen::RecoveryCommits, Seen::RecoveryAborts].into_iter().chain(crashes));
    explore(bounds, states);
}

#[test]
fn a_client_that_is_cut_off() {
    let (more, states) = if is_full() { (1, 460_294) } else { (0, 9_450) };
    let budget = Budget { cuts: 1, waits: 1, pauses: more, deaths: more, ..Budget::default() };
    let mut bounds = shards("A client that is cut off from a server", budget);
    bounds.must.extend([Seen::FenceBeatsPrepare, Seen::ToldUnknown]);
    explore(bounds, states);
}

/// Leaders in both clusters; the second server of each hears no heartbeat.
#[test]
fn replicated_shards() {
    let (deaths, states) = if is_full() { (1, 469_831) } else { (0, 402_981) };
    let budget = Budget { deaths, ..Budget::default() };
    let mut bounds = shards("Two clusters of three servers", budget);
    bounds.topology.servers_per_cluster = 3;
    bounds.timeouts = Timeouts { heartbeat_interval_ms: 6000, election_timeout_ms: 20_000, ..timeouts() };
    bounds.amounts = vec![3];
    bounds.lost = |to, message| matches!(message, Message::Heartbeat(_)) && (to == S2 || to == NodeId(5));
    bounds.must = vec![Seen::YesYes, Seen::ToldCommitted];
    if is_full() {
        bounds.must.push(Seen::DiedBetweenVotes);
    }
    explore(bounds, states);
}
