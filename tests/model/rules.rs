//! What must never be, what must happen somewhere, and the memory that both need: the rules of `ARCHITECTURE.md`.

use shardpaxosbank::bank::command::{self, Command, Range};
use shardpaxosbank::bank::{Bank, Effects, Status};
use shardpaxosbank::config::Topology;
use shardpaxosbank::txn::message::Response;
use shardpaxosbank::txn::{self, Outcome};
use shardpaxosbank::types::{AccountId, NodeId, Reason, ShardId, Slot, TxnId, Value};
use shardpaxosbank::{paxos, shard};

use super::node::{Node, Shared};
use super::state::{Budget, State, number_of};
use super::world::World;

/// What a property of the model is named after.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Rule {
    P1,
    P2,
    P4,
    P5,
    B1,
    B2,
    T1,
    T2,
    T3,
    T4,
    T5,
    T8,
    Assertions,
}

impl Rule {
    pub const ALL: [Rule; 13] = [
        Rule::P1,
        Rule::P2,
        Rule::P4,
        Rule::P5,
        Rule::B1,
        Rule::B2,
        Rule::T1,
        Rule::T2,
        Rule::T3,
        Rule::T4,
        Rule::T5,
        Rule::T8,
        Rule::Assertions,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Rule::P1 => "P1 promises and acceptances that leave are durable",
            Rule::P2 => "P2 a slot has one value, on all servers and across restarts",
            Rule::P4 => "P4 equal slots, equal banks and digests",
            Rule::P5 => "P5 a confirmed leader knows all that was decided when it was asked",
            Rule::B1 => "B1 no account holds less than what is held from it",
            Rule::B2 => "B2 balances and money in transit keep their sum",
            Rule::T1 => "T1 a vote register is written once",
            Rule::T2 => "T2 committed only if all voted YES, never here and aborted there",
            Rule::T3 => "T3 what the client was told is what the registers say",
            Rule::T4 => "T4 left alone, everything is resolved and no lock stays",
            Rule::T5 => "T5 locks come and go by the log alone",
            Rule::T8 => "T8 what was refused, or aborted to the client, never takes effect",
            Rule::Assertions => "the core's own assertions hold",
        }
    }
}

macro_rules! seen {
    ($($name:ident $text:literal,)*) => {
        /// What must happen somewhere, or the model would prove nothing.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Seen {
            $($name,)*
        }

        impl Seen {
            pub const COUNT: usize = [$(Seen::$name),*].len();

            pub fn text(self) -> &'static str {
                match self {
                    $(Seen::$name => $text,)*
                }
            }
        }
    };
}

seen! {
    Leads "a leader emerges",
    LeadsAgain "a second ballot leads",
    OldTail "an old tail is proposed again",
    Deposed "a leader steps down",
    CaughtUp "a candidate fetches what it lacks",
    Resent "what was lost is sent again",
    BothSlots "both slots are decided",
    Confirmed "a leader is confirmed",
    Done "a proposal is answered as done",
    Unsure "a proposal is answered as unsure",
    Crash "a server loses its memory",
    DiedBeforeSync "a server dies between sending and syncing",
    DiedBeforeRelease "a server dies between syncing and releasing",
    YesYes "both shards vote YES",
    No "a shard votes NO by itself",
    FenceBeatsPrepare "a fence beats a prepare",
    LatePrepare "a prepare of a dead coordinator takes a lock",
    DiedBetweenVotes "the coordinator dies between the votes",
    RecoveryCommits "recovery commits",
    RecoveryAborts "recovery aborts",
    RecoveryDropped "a recovery finds that another one was faster",
    ToldCommitted "the client is told that it committed",
    ToldAborted "the client is told that it aborted",
    ToldUnknown "the client is told that it is not known",
}

/// What a shard's log has decided, and the bank that this makes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Truth {
    pub values: Vec<Value>,
    /// The bank after each of them; the one before the first comes first.
    banks: Vec<Bank>,
    /// The register of the client's transfer.
    pub register: Option<Status>,
}

impl Truth {
    pub fn new(topology: Topology, shard: ShardId) -> Truth {
        let bank = Bank::new(topology, shard);
        Truth { values: Vec::new(), banks: vec![bank], register: None }
    }

    pub fn bank(&self) -> &Bank {
        self.banks.last().expect("there is one before the first value")
    }
}

/// What the register of `id` holds, asked as anybody asks: by a fence, of which only a copy of the bank hears.
fn register(bank: &Bank, id: TxnId) -> Option<Status> {
    let mut blocks = Vec::new();
    command::put_fence(&mut blocks, Range { session: id.session, first: id.seq, count: 1 });
    let mut copy = bank.clone();
    let mut effects = Effects::default();
    if bank.holds().get(&id).is_some() {
        return Some(Status::Yes);
    }
    copy.apply(bank.applied().next(), &Value::from_slice(&blocks), &mut effects);
    let status = effects.results.first().and_then(|r| r.unpack()).and_then(|s| s.first().copied());
    // Where the fence changed anything, there was nothing before it.
    let mut unchanged = bank.clone();
    unchanged.apply(bank.applied().next(), &Value::noop(), &mut effects);
    status.filter(|s| copy.digest() == unchanged.digest() && *s != Status::Expired)
}

/// Rounds of time passing after which everything must be resolved (T4).
const ROUNDS: usize = 12;

/// Compares what a server holds as decided with what anybody ever did, and remembers it.
pub fn note_decided(world: &World, state: &mut State, node: &Node) {
    let index = world.bounds.topology.shard_of_server(node.shard.id()).index();
    let applied = node.shard.bank().applied();
    for slot in (1..=applied.0).map(Slot) {
        let Some(value) = node.decided_value(slot) else {
            state.breaks(Rule::P2, format!("{} has lost decided slot {slot}", node.shard.id()));
            return;
        };
        match state.truth[index].values.get(slot.0 as usize - 1) {
            Some(known) if known == value => {}
            Some(known) => {
                let what = format!("slot {slot} was {known:?} and is {value:?} at {}", node.shard.id());
                state.breaks(Rule::P2, what);
                return;
            }
            None => learn(world, state, index, slot, value),
        }
    }
    let (bank, truth) = (node.shard.bank(), &state.truth[index].banks[applied.0 as usize]);
    if bank == truth && bank.digest() == truth.digest() {
        return;
    }
    let shard = world.bounds.topology.shard_of_server(node.shard.id());
    let mut accounts = world.bounds.topology.accounts_of(shard).map(AccountId);
    let same_locks =
        accounts.all(|a| bank.is_locked(a) == truth.is_locked(a)) && bank.holds() == truth.holds();
    let rule = if same_locks { Rule::P4 } else { Rule::T5 };
    state.breaks(rule, format!("{} is not what its log makes it after slot {applied}", node.shard.id()));
}

/// A slot is known as decided for the first time.
fn learn(world: &World, state: &mut State, index: usize, slot: Slot, value: &Value) {
    let id = world.id();
    let mut truth = Truth::clone(&state.truth[index]);
    let before = truth.register;
    let mut bank = truth.bank().clone();
    bank.apply(slot, value, &mut Effects::default());
    truth.values.push(value.clone());
    if state.amount != 0 {
        truth.register = register(&bank, id);
        note_register(world, state, before, truth.register, value);
    } else if truth.values.len() == 2 && truth.values.iter().all(|v| !v.is_empty()) {
        world.saw(Seen::BothSlots);
    }
    truth.banks.push(bank);
    if let Some(number) = number_of(value).filter(|n| state.refused.contains(n)) {
        state.breaks(Rule::T8, format!("value {number} was refused and is decided in slot {slot}"));
    }
    state.truth[index] = Shared::new(truth);
    if state.amount != 0 {
        check_transfer(world, state);
    }
    check_money(world, state);
}

fn note_register(
    world: &World,
    state: &mut State,
    before: Option<Status>,
    after: Option<Status>,
    value: &Value,
) {
    let settles = matches!(
        (before, after),
        (None, _) | (Some(Status::Yes), Some(Status::YesCommitted | Status::YesAborted))
    );
    if before != after && !settles {
        state.breaks(Rule::T1, format!("the register was {before:?} and is {after:?}"));
    }
    let prepares = command::blocks(&value.0).any(|b| matches!(b, Ok(Command::Prepare { .. })));
    match (before, after) {
        (None, Some(Status::Yes)) if state.client.is_none() => world.saw(Seen::LatePrepare),
        (None, Some(Status::Aborted(r))) if r != Reason::NoQuorum => world.saw(Seen::No),
        (Some(Status::Aborted(Reason::NoQuorum)), _) if prepares => world.saw(Seen::FenceBeatsPrepare),
        _ => {}
    }
}

/// T2, T3, T8: the two registers, and what the client knows of them.
fn check_transfer(world: &World, state: &mut State) {
    let registers: Vec<Option<Status>> = state.truth.iter().map(|t| t.register).collect();
    let yes = |r: &Option<Status>| matches!(r, Some(Status::Yes | Status::YesCommitted | Status::YesAborted));
    let all_yes = registers.iter().all(yes);
    let committed = registers.contains(&Some(Status::YesCommitted));
    let aborted = |r: &Option<Status>| matches!(r, Some(Status::YesAborted | Status::Aborted(_)));
    let any_aborted = registers.iter().any(aborted);
    let text = format!("the registers are {registers:?}, the client was told {:?}", state.told);
    if committed && (!all_yes || any_aborted) || all_yes && registers.contains(&Some(Status::YesAborted)) {
        state.breaks(Rule::T2, &*text);
    }
    match state.told {
        Some(Outcome::Committed) if !all_yes || any_aborted => state.breaks(Rule::T3, &*text),
        Some(Outcome::Aborted(_)) if committed || all_yes => state.breaks(Rule::T8, &*text),
        _ => {}
    }
    if all_yes && registers.iter().all(|r| *r == Some(Status::Yes)) {
        world.saw(Seen::YesYes);
    }
}

/// B1 and B2, with what one shard has done of the transfer and the other has not.
fn check_money(world: &World, state: &mut State) {
    let Topology { accounts, initial_balance, .. } = world.bounds.topology;
    let mut total: i128 = state.truth.iter().map(|t| t.bank().total() as i128).sum();
    if state.amount != 0 {
        let done = |index: usize| i128::from(state.truth[index].register == Some(Status::YesCommitted));
        total += i128::from(state.amount) * (done(0) - done(1));
    }
    if total != i128::from(accounts * initial_balance) {
        state.breaks(Rule::B2, format!("the sum is {total}"));
    }
    let banks = state.truth.iter().map(|t| t.bank());
    let holds = banks.flat_map(|bank| bank.holds().iter().map(move |(_, hold)| (bank, hold)));
    let short = holds
        .filter(|(bank, hold)| {
            bank.balance(hold.transfer.from).is_some_and(|b| b < hold.transfer.amount as u64)
        })
        .map(|(_, hold)| format!("account {} holds less than {}", hold.transfer.from, hold.transfer.amount))
        .next();
    if let Some(what) = short {
        state.breaks(Rule::B1, what);
    }
}

/// What the client was told of its transfer.
pub fn note_told(world: &World, state: &mut State, outcome: Outcome) {
    world.saw(match outcome {
        Outcome::Committed => Seen::ToldCommitted,
        Outcome::Unknown => Seen::ToldUnknown,
        _ => Seen::ToldAborted,
    });
    if state.told.as_ref().is_some_and(|told| *told != Outcome::Unknown) {
        state.breaks(Rule::T3, format!("told {:?}, then {outcome:?}", state.told));
    }
    state.told = Some(outcome);
    check_transfer(world, state);
}

/// What a leader answered to the model's own requests.
pub fn note_answer(world: &World, state: &mut State, response: &Response) {
    match response {
        Response::Leading { decided, .. } => {
            world.saw(Seen::Confirmed);
            if state.asked.is_some_and(|asked| *decided < asked) {
                let what = format!("{:?} were decided, the answer knows {decided}", state.asked);
                state.breaks(Rule::P5, what);
            }
        }
        Response::Done { request, .. } => {
            world.saw(Seen::Done);
            let decided = state.truth[0].values.iter().any(|v| number_of(v) == Some(*request));
            if !decided {
                state.breaks(Rule::T3, format!("value {request} is done, but not decided"));
            }
        }
        Response::Unsure { .. } => world.saw(Seen::Unsure),
        Response::Refused { request, .. } => {
            state.refused.push(*request);
            let decided = state.truth[0].values.iter().any(|v| number_of(v) == Some(*request));
            if decided {
                state.breaks(Rule::T8, format!("value {request} is refused, but decided"));
            }
        }
        Response::Balance { .. } | Response::Status { .. } => {}
    }
}

pub fn note_paxos(world: &World, event: &paxos::Event) {
    match event {
        paxos::Event::Leading { ballot, decided, phase1_end } => {
            world.saw(Seen::Leads);
            if ballot.round > 1 {
                world.saw(Seen::LeadsAgain);
            }
            if phase1_end > decided {
                world.saw(Seen::OldTail);
            }
        }
        paxos::Event::LostLeadership { .. } => world.saw(Seen::Deposed),
        paxos::Event::CaughtUp { .. } => world.saw(Seen::CaughtUp),
        paxos::Event::Resending { .. } => world.saw(Seen::Resent),
        _ => {}
    }
}

pub fn note_shard(world: &World, event: &shard::Event) {
    let shard::Event::Recovery(event) = event else { return };
    match event {
        txn::Event::Recovered { commit: true, .. } => world.saw(Seen::RecoveryCommits),
        txn::Event::Recovered { commit: false, .. } => world.saw(Seen::RecoveryAborts),
        txn::Event::RecoveryDropped { .. } => world.saw(Seen::RecoveryDropped),
        _ => {}
    }
}

impl World {
    /// T4: whether everything is resolved once nothing goes wrong any more. All in flight is lost, or all of it arrives.
    pub fn resolves(&self, state: &State, lose: bool) -> bool {
        let mut state = state.clone();
        state.left = Budget::default();
        if lose {
            state.net.clear();
        }
        for _ in 0..ROUNDS {
            if self.is_resolved(&state) {
                return true;
            }
            for shard in self.bounds.topology.shards() {
                let servers: Vec<_> = self.bounds.topology.servers_of(shard).collect();
                let leads = |s: &&NodeId| state.nodes[s.index()].shard.replica().is_leader();
                let leader = servers.iter().find(leads).copied();
                match leader {
                    Some(leader) => _ = self.pause(&mut state, leader, None),
                    None => {
                        state.left.campaigns = 1;
                        self.campaign(&mut state, servers[0], servers[servers.len() - 1], None);
                        state.left.campaigns = 0;
                    }
                }
                self.deliver_all(&mut state);
            }
            for server in std::mem::take(&mut state.cut) {
                self.client_turn(&mut state, vec![txn::Input::Connected(server)]);
            }
            self.wait(&mut state);
            self.deliver_all(&mut state);
        }
        self.is_resolved(&state)
    }

    fn is_resolved(&self, state: &State) -> bool {
        let answered =
            state.client.is_none() || state.told.as_ref().is_some_and(|told| *told != Outcome::Unknown);
        state.net.is_empty() && answered && state.truth.iter().all(|t| t.bank().holds().is_empty())
    }
}
