//! One thread that plays all clients: each has a coordinator, a session and connections of its own, in one mio loop.
//!
//! *Closed loop:* a client has a fixed number of batches under way, and asks for the next one when one is answered. *Open loop:*
//! batches are due at a fixed rate, whether answers come or not, and wait for their turn when a client has as many under way as
//! it may. Latency counts from when a batch was due, so that a stall counts for everything that it keeps waiting.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::bench::draw::{Asked, Kind, Source};
use crate::config::{Timeouts, Topology};
use crate::metrics::Latencies;
use crate::runtime::clock::{Clock, until};
use crate::runtime::conns::{Conns, Context, Item};
use crate::runtime::outlet::Outlet;
use crate::txn::{self, Coordinator, Op, Outcome, Output, Reach};
use crate::types::{Reason, ShardId, Slot, Time};

const WAKER: Token = Token(0);
const TIMER: Token = Token(1);
/// Tokens of each client's connections: no client ever opens so many.
const STRIDE: usize = 1 << 24;
/// Of a tag, the bits that say which operation of its batch it is.
const INDEX_BITS: u32 = 20;
/// The tag of the last question.
const LAST: u64 = u64::MAX;
/// The longest sleep: whether somebody wants to stop is looked at so often.
const GLANCE: Duration = Duration::from_millis(100);
/// How long everything may take to be answered in the end, and servers to be found in the beginning.
const PATIENCE: Duration = Duration::from_secs(60);
/// Commits are counted by such intervals, for the course of the rate over time.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// The largest batch.
pub const BATCH_MOST: usize = (1 << INDEX_BITS) - 8;

/// When it is enough.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum End {
    After(Duration),
    /// Answered since the warm-up.
    Operations(u64),
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Load {
    pub clients: usize,
    /// Batches that one client has under way at most.
    pub in_flight: usize,
    /// Operations in a batch.
    pub batch: usize,
    /// Operations in a second that are due, of all clients together; `None`: as many as there are answers.
    pub rate: Option<f64>,
    /// What goes before and is not measured.
    pub warm_up: Duration,
    pub end: End,
}

/// Latencies in microseconds, of what was answered while it was measured.
#[derive(Clone, Default)]
pub struct Measured {
    pub span: Duration,
    pub committed: u64,
    pub reads: u64,
    pub aborted: BTreeMap<Reason, u64>,
    pub unknown: u64,
    /// Reads that got no balance.
    pub unread: u64,
    /// From when a batch was due to the answer to an operation: transfers within a shard, transfers across, reads.
    pub within: Latencies,
    pub across: Latencies,
    pub read: Latencies,
    /// To the last answer of a batch.
    pub batch: Latencies,
    /// Commits in each [`INTERVAL`] from the beginning of what is measured.
    pub course: Vec<u64>,
    /// Transfers that were answered, all in all: warm-up, measured, and what was under way in the end.
    pub transfers_in_all: u64,
    /// All of them, and what committed of them.
    pub committed_in_all: u64,
}

impl Measured {
    /// The latencies of which there are any, by what they are of.
    pub fn kinds(&self) -> impl Iterator<Item = (&'static str, &Latencies)> {
        let kinds = [
            ("within a shard", &self.within),
            ("across shards", &self.across),
            ("read", &self.read),
            ("batch", &self.batch),
        ];
        kinds.into_iter().filter(|(_, latencies)| latencies.summary().count > 0)
    }
}

/// What a run leaves behind.
pub struct Finished {
    pub measured: Measured,
    /// By account, what transfers that are known to be committed have added, and taken.
    pub changes: Vec<i64>,
    /// Transfers of which nobody knows how they ended.
    pub unresolved: u64,
    /// How far each shard had decided in the end.
    pub decided: Vec<(ShardId, Slot)>,
}

struct Batch {
    due: Time,
    asked: Vec<Asked>,
    left: usize,
    /// Those that were said to be unknown, and are not resolved.
    unknown: BTreeSet<usize>,
}

struct Client {
    outlet: Outlet,
    out: Output,
    received: Vec<Item>,
    /// The oldest first; those in front that are over go.
    batches: VecDeque<Batch>,
    /// The number of the first of these.
    first: u64,
    under_way: usize,
    /// Batches that are due and not asked for.
    waiting: VecDeque<Time>,
    deadline: Option<Time>,
}

/// A run of equal observations, recorded together: what one batch is answered with at once.
#[derive(Default)]
struct Streak {
    latency: Duration,
    kind: Kind,
    count: u64,
    committed: u64,
    /// When they were answered, from the beginning of what is measured.
    at: Duration,
}

struct Driver<'a> {
    load: Load,
    topology: Topology,
    clock: Clock,
    source: Source,
    clients: Vec<Client>,
    touched: Vec<usize>,
    drawn: Vec<Op>,
    spare: Vec<Vec<Asked>>,
    streak: Streak,
    /// Committed transfers that are not in `changes` yet: apart from everything else, they are noted several times as fast.
    done: Vec<Asked>,
    changes: Vec<i64>,
    measured: Measured,
    unresolved: u64,
    /// Operations, while it was measured.
    answered: u64,
    /// When warm-up began, when it ends, and when measuring does.
    begun: Time,
    warm: Time,
    over: Option<Time>,
    stop: &'a AtomicBool,
    progress: &'a dyn Fn(f64),
}

/// Drives a bank. `progress` hears what part of the run is done.
///
/// # Errors
///
/// A descriptor cannot be had, no leader is found, or what was asked for is not answered within a minute.
pub fn drive(
    context: &Context,
    timeouts: Timeouts,
    load: Load,
    source: Source,
    stop: &AtomicBool,
    progress: &dyn Fn(f64),
) -> Result<Finished, String> {
    let mut poll = Poll::new().map_err(|e| format!("no event loop: {e}"))?;
    let waker = Waker::new(poll.registry(), WAKER).map_err(|e| format!("no event loop: {e}"))?;
    let (waker, clock) = (Arc::new(waker), Clock::start());
    let mut clients = Vec::with_capacity(load.clients);
    for n in 0..load.clients {
        let client = Client::new(context, timeouts, poll.registry(), &waker, n, clock.now());
        clients.push(client.map_err(|e| format!("client {}: no event loop: {e}", n + 1))?);
    }
    let accounts = context.topology.accounts as usize;
    let mut driver = Driver {
        load,
        topology: context.topology,
        clock,
        source,
        touched: (0..clients.len()).collect(),
        clients,
        drawn: Vec::new(),
        spare: Vec::new(),
        streak: Streak::default(),
        done: Vec::new(),
        changes: vec![0; accounts],
        measured: Measured::default(),
        unresolved: 0,
        answered: 0,
        begun: Time::default(),
        warm: Time::default(),
        over: None,
        stop,
        progress,
    };
    driver.run(&mut poll)
}

impl Client {
    fn new(
        context: &Context,
        timeouts: Timeouts,
        registry: &Registry,
        waker: &Arc<Waker>,
        n: usize,
        now: Time,
    ) -> io::Result<Client> {
        let conns = Conns::new(context.clone(), registry.try_clone()?, waker.clone(), (n + 1) * STRIDE);
        let coordinator = Coordinator::new(context.topology, timeouts, now);
        Ok(Client {
            outlet: Outlet { conns, coordinator },
            out: Output::default(),
            received: Vec::new(),
            batches: VecDeque::new(),
            first: 0,
            under_way: 0,
            waiting: VecDeque::new(),
            deadline: None,
        })
    }

    fn submit(&mut self, now: Time, tag: u64, op: Op) {
        self.outlet.coordinator.step(now, txn::Input::Submit { tag, op }, &mut self.out);
    }
}

/// A question that every client's coordinator is asked, and what came of it.
struct Question {
    op: Op,
    left: usize,
    confirmed: Option<Vec<Reach>>,
}

impl Driver<'_> {
    fn run(&mut self, poll: &mut Poll) -> Result<Finished, String> {
        let mut events = Events::with_capacity(1024);
        let timer = Timer::new(poll.registry()).map_err(|e| format!("no timer: {e}"))?;
        // Connections stand and leaders are known before anything is measured.
        self.ask_all(poll, &mut events, Op::Confirm { anew: true })?;
        self.begun = self.clock.now();
        self.warm = self.begun + self.load.warm_up;
        let gap = self.load.rate.map(|rate| Duration::from_secs_f64(self.load.batch as f64 / rate));
        let (mut due, mut next) = (self.begun, 0);
        self.touched = (0..self.clients.len()).collect();
        loop {
            let now = self.clock.now();
            self.judge_time(now);
            if self.over.is_some() {
                break;
            }
            if let Some(gap) = gap {
                while due <= now {
                    let client = next % self.clients.len();
                    self.clients[client].waiting.push_back(due);
                    self.touched.push(client);
                    (due, next) = (due + gap, next + 1);
                }
                timer.set(until(now, due)).map_err(|e| format!("no timer: {e}"))?;
            }
            self.serve(now, None);
            self.wait(poll, &mut events)?;
        }
        // What waits was never asked for.
        self.clients.iter_mut().for_each(|client| client.waiting.clear());
        let since = self.clock.now();
        while self.clients.iter().any(|client| client.under_way > 0) {
            self.check_patience(since, "not everything that was asked for is answered")?;
            self.wait(poll, &mut events)?;
            self.serve(self.clock.now(), None);
        }
        self.ask_all(poll, &mut events, Op::Settle)?;
        let reaches = self.ask_all(poll, &mut events, Op::Confirm { anew: true })?;
        let decided = self.topology.shards().zip(reaches).filter_map(|(shard, reach)| match reach {
            Reach::Leader { decided, .. } => Some((shard, decided)),
            _ => None,
        });
        Ok(Finished {
            decided: decided.collect(),
            measured: std::mem::take(&mut self.measured),
            changes: std::mem::take(&mut self.changes),
            unresolved: self.unresolved,
        })
    }

    fn check_patience(&self, since: Time, what: &str) -> Result<(), String> {
        if self.clock.now().since(since) < PATIENCE {
            return Ok(());
        }
        Err(format!("{what} after {PATIENCE:?}"))
    }

    /// Whether the run goes on, by the time and by what was done.
    fn judge_time(&mut self, now: Time) {
        let done = match self.load.end {
            End::After(span) => now.since(self.warm).as_secs_f64() / span.as_secs_f64(),
            End::Operations(count) => self.answered as f64 / count as f64,
        };
        (self.progress)(done.clamp(0.0, 1.0));
        if done >= 1.0 || self.stop.load(Ordering::Relaxed) {
            self.over = Some(now);
            self.flush_streak();
            self.measured.span = now.since(self.warm);
        }
    }

    fn wait(&mut self, poll: &mut Poll, events: &mut Events) -> Result<(), String> {
        let now = self.clock.now();
        let more = |client: &Client| client.outlet.conns.has_more();
        let busy = !self.touched.is_empty() || self.clients.iter().any(more);
        let deadline = self.clients.iter().filter_map(|client| client.deadline).min();
        let patience = deadline.map_or(GLANCE, |deadline| until(now, deadline)).min(GLANCE);
        if let Err(e) = poll.poll(events, Some(if busy { Duration::ZERO } else { patience }))
            && e.kind() != io::ErrorKind::Interrupted
        {
            return Err(format!("the clients cannot poll: {e}"));
        }
        for event in events.iter() {
            match event.token() {
                WAKER => self.touched.extend(0..self.clients.len()),
                TIMER => {}
                Token(token) => {
                    let n = token / STRIDE - 1;
                    self.clients[n].outlet.conns.wake(event);
                    self.touched.push(n);
                }
            }
        }
        let now = self.clock.now();
        for (n, client) in self.clients.iter().enumerate() {
            if more(client) || client.deadline.is_some_and(|deadline| deadline <= now) {
                self.touched.push(n);
            }
        }
        self.touched.sort_unstable();
        self.touched.dedup();
        Ok(())
    }

    /// Asks every client's coordinator, and waits for all answers; those of the first one to a confirmation.
    fn ask_all(&mut self, poll: &mut Poll, events: &mut Events, op: Op) -> Result<Vec<Reach>, String> {
        let since = self.clock.now();
        let mut question = Question { op, left: self.clients.len(), confirmed: None };
        for n in 0..self.clients.len() {
            self.clients[n].submit(since, LAST, op);
            self.touched.push(n);
        }
        loop {
            self.serve(self.clock.now(), Some(&mut question));
            if question.left == 0 {
                return Ok(question.confirmed.unwrap_or_default());
            }
            self.check_patience(since, "the bank has no leader everywhere")?;
            self.wait(poll, events)?;
        }
    }

    /// One turn of each client for whom something came or is due.
    fn serve(&mut self, now: Time, mut question: Option<&mut Question>) {
        let mut touched = std::mem::take(&mut self.touched);
        for n in touched.drain(..) {
            let client = &mut self.clients[n];
            client.outlet.conns.dial_resolved(now);
            let mut received = std::mem::take(&mut client.received);
            client.outlet.conns.receive(now, &mut received);
            for item in received.drain(..) {
                if let Some(why) = client.outlet.take(now, item, &mut client.out) {
                    log::error!("client {}: {why}", n + 1);
                }
            }
            loop {
                if question.is_none() && self.over.is_none() {
                    self.ask_for_more(now, n);
                }
                let client = &mut self.clients[n];
                let mut out = std::mem::take(&mut client.out);
                let answers = client.outlet.end_turn(now, &mut out);
                client.out = out;
                if answers.is_empty() && client.out.answers.is_empty() {
                    break;
                }
                for answer in answers {
                    if answer.tag == LAST {
                        self.answer_last(n, answer.outcome, question.as_deref_mut());
                    } else {
                        self.answer(now, n, answer.tag, &answer.outcome);
                    }
                }
            }
            for transfer in self.done.drain(..) {
                self.changes[transfer.from.0 as usize - 1] -= i64::from(transfer.amount);
                self.changes[transfer.to.0 as usize - 1] += i64::from(transfer.amount);
            }
            let client = &mut self.clients[n];
            client.outlet.conns.flush(&mut received);
            client.received = received;
            client.deadline = client.outlet.coordinator.next_deadline();
            if !client.received.is_empty() {
                // Something broke while it was written.
                client.deadline = Some(now);
            }
        }
        self.touched = touched;
    }

    /// A leader is wanted everywhere: whoever has none asks again.
    fn answer_last(&mut self, n: usize, outcome: Outcome, question: Option<&mut Question>) {
        let Some(question) = question else { return };
        if let Outcome::Confirmed(reaches) = outcome {
            if !reaches.iter().all(|reach| matches!(reach, Reach::Leader { .. })) {
                let now = self.clock.now();
                return self.clients[n].submit(now, LAST, question.op);
            }
            question.confirmed.get_or_insert(reaches);
        }
        question.left -= 1;
    }

    fn ask_for_more(&mut self, now: Time, n: usize) {
        let open = self.load.rate.is_some();
        while self.clients[n].under_way < self.load.in_flight {
            let due = if open { self.clients[n].waiting.pop_front() } else { Some(now) };
            let Some(due) = due else { return };
            let mut asked = self.spare.pop().unwrap_or_default();
            let client = &mut self.clients[n];
            let number = client.first + client.batches.len() as u64;
            while asked.len() < self.load.batch {
                self.source.draw(&mut self.drawn);
                for op in self.drawn.drain(..) {
                    let tag = number << INDEX_BITS | asked.len() as u64;
                    asked.push(Asked::of(&op, &self.topology));
                    client.submit(now, tag, op);
                }
            }
            client.under_way += 1;
            client.batches.push_back(Batch { due, left: asked.len(), unknown: BTreeSet::new(), asked });
        }
    }

    fn answer(&mut self, now: Time, n: usize, tag: u64, outcome: &Outcome) {
        let client = &mut self.clients[n];
        let place = (tag >> INDEX_BITS).checked_sub(client.first).map(|place| place as usize);
        let Some(batch) = place.and_then(|place| client.batches.get_mut(place)) else { return };
        let index = (tag & ((1 << INDEX_BITS) - 1)) as usize;
        let asked = batch.asked[index];
        let counts = self.over.is_none() && now >= self.warm;
        let latency = now.since(batch.due);
        // The second answer to what was unknown changes what is known, and no figure.
        let late = !batch.unknown.is_empty() && batch.unknown.remove(&index);
        self.unresolved -= u64::from(late);
        let kind = asked.kind;
        if *outcome == Outcome::Committed {
            self.done.push(asked);
        }
        if *outcome == Outcome::Unknown {
            batch.unknown.insert(index);
            self.unresolved += 1;
        }
        if late {
            return self.forget_done(n);
        }
        if kind != Kind::Read {
            self.measured.transfers_in_all += 1;
            self.measured.committed_in_all += u64::from(*outcome == Outcome::Committed);
        }
        let mut committed = 0;
        let measured = &mut self.measured;
        match (outcome, kind) {
            (Outcome::Unknown, _) if counts => measured.unknown += 1,
            (Outcome::Committed, _) if counts => {
                measured.committed += 1;
                committed = 1;
            }
            (Outcome::Balance(_), _) if counts => measured.reads += 1,
            (Outcome::Aborted(reason), Kind::Within | Kind::Across) if counts => {
                *measured.aborted.entry(*reason).or_default() += 1;
            }
            (_, Kind::Read) if counts => measured.unread += 1,
            _ => {}
        }
        self.answered += u64::from(counts);
        batch.left -= 1;
        let whole = batch.left == 0;
        if counts {
            if (self.streak.latency, self.streak.kind) != (latency, kind) {
                self.flush_streak();
                (self.streak.latency, self.streak.kind) = (latency, kind);
                self.streak.at = now.since(self.warm);
            }
            self.streak.count += 1;
            self.streak.committed += committed;
            if whole {
                self.measured.batch.record(latency);
            }
        }
        if whole {
            self.clients[n].under_way -= 1;
            self.forget_done(n);
        }
    }

    fn flush_streak(&mut self) {
        let Streak { latency, kind, count, committed, at } = std::mem::take(&mut self.streak);
        let course = &mut self.measured.course;
        let interval = (at.as_micros() / INTERVAL.as_micros()) as usize;
        if course.len() <= interval {
            course.resize(interval + 1, 0);
        }
        course[interval] += committed;
        let latencies = match kind {
            Kind::Within => &mut self.measured.within,
            Kind::Across => &mut self.measured.across,
            Kind::Read => &mut self.measured.read,
        };
        latencies.record_many(latency, count);
    }

    fn forget_done(&mut self, n: usize) {
        let client = &mut self.clients[n];
        while client.batches.front().is_some_and(|batch| batch.left == 0 && batch.unknown.is_empty())
            && let Some(mut batch) = client.batches.pop_front()
        {
            client.first += 1;
            batch.asked.clear();
            self.spare.push(batch.asked);
        }
    }
}

/// Wakes the loop to the microsecond, which a poll's time-out, counted in milliseconds, does not.
struct Timer(rustix::fd::OwnedFd);

impl Timer {
    fn new(registry: &Registry) -> io::Result<Timer> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        registry.register(&mut SourceFd(&fd.as_raw_fd()), TIMER, Interest::READABLE)?;
        Ok(Timer(fd))
    }

    fn set(&self, after: Duration) -> io::Result<()> {
        // Zero would disarm it.
        let after = after.max(Duration::from_nanos(1));
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec { tv_sec: after.as_secs() as _, tv_nsec: after.subsec_nanos().into() };
        let spec = Itimerspec { it_interval: zero, it_value: value };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &spec)?;
        Ok(())
    }
}
