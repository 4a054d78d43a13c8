//! The coordinator thread: a mio loop around the pure coordinator, which schedules the rows of a set, drives two-phase
//! commit and records latencies.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, unbounded};
use mio::{Events, Poll, Token, Waker};

use crate::config::Timeouts;
use crate::metrics::Latencies;
use crate::runtime::clock::{Clock, until};
use crate::runtime::conns::{Conns, Context, Item, Received, Role};
use crate::runtime::outlet::Outlet;
use crate::testset::Scheduler;
use crate::txn::{Coordinator, Input, Op, Outcome, Output};
use crate::types::{AccountId, NodeId, Reason, Time};

/// How long a client that goes stays for others' sake.
const SETTLING: Duration = Duration::from_secs(2);

const WAKER: Token = Token(0);
const FIRST_CONN: usize = 1;

/// Tags of what is none of the rows, far above theirs: of [`Command::Op`], and of [`Command::Ask`].
const FIRST_OP: u64 = 1 << 63;
const FIRST_ASKED: u64 = 3 << 62;

/// A transfer or a read, under a tag that is never used twice in the life of the thread.
pub struct Row {
    pub tag: u64,
    pub accounts: Vec<AccountId>,
    pub op: Op,
    /// Whether it goes across shards; for the latencies.
    pub cross: bool,
}

/// What the coordinator thread can be asked to do.
pub enum Command {
    /// Run these rows; [`News::RowsDone`] follows when each has its outcome.
    Rows {
        rows: Vec<Row>,
        in_flight: usize,
        race: bool,
    },
    /// A confirmation or settling, answered with [`News::Op`].
    Op(Op),
    /// Any number of operations, of any number of callers: each is answered at its asker's own channel, under the number
    /// that stands beside it. How something ends that was unknown at first is not told.
    Ask {
        ops: Vec<(usize, Op)>,
        to: Sender<Reply>,
    },
    /// The servers to ask first.
    Hints(Vec<NodeId>),
    Stop,
}

/// What it reports.
pub enum News {
    Row {
        tag: u64,
        outcome: Outcome,
        latency: Option<Duration>,
    },
    RowsDone(Box<Segment>),
    Op(Outcome),
    /// A server turned this client away: another bank, or another configuration.
    TurnedAway(String),
    /// A transfer that was unknown has its outcome after all.
    Resolved {
        tag: u64,
        outcome: Outcome,
    },
}

/// The answer to one operation of [`Command::Ask`].
pub struct Reply {
    pub number: usize,
    pub outcome: Outcome,
    /// Why a server turns this client away, if one does and the outcome says that a shard could not be reached.
    pub refusal: Option<Arc<str>>,
}

/// What was measured between two barriers.
#[derive(Clone, Default)]
pub struct Segment {
    pub latency: Latencies,
    pub intra: Latencies,
    pub cross: Latencies,
    /// From the moment a row was given to the moment it was first sent.
    pub held_back: Latencies,
    pub peak_in_flight: usize,
    /// From the first send to the last reply.
    pub span: Duration,
}

/// The other end of a running coordinator thread. Dropping it stops the thread.
pub struct Client {
    commands: Sender<Command>,
    pub news: Receiver<News>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    pub fn start(context: Context, timeouts: Timeouts) -> io::Result<Client> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let (commands, orders) = unbounded();
        let (reports, news) = unbounded();
        let conns = Conns::new(context.clone(), poll.registry().try_clone()?, waker.clone(), FIRST_CONN);
        let clock = Clock::start();
        let coordinator = Coordinator::new(context.topology, timeouts, clock.now());
        let worker = Worker::new(Outlet { conns, coordinator }, clock, orders, reports);
        let thread =
            std::thread::Builder::new().name("coordinator".into()).spawn(move || worker.run(poll))?;
        Ok(Client { commands, news, waker, thread: Some(thread) })
    }

    pub fn send(&self, command: Command) {
        // Fails only if the thread is gone; then the news channel is closed too, and the caller hears of it there.
        let _ = self.commands.send(command);
        let _ = self.waker.wake();
    }

    /// Has the coordinator do one thing, and waits for what comes of it.
    ///
    /// # Errors
    ///
    /// There was no answer within that time, or the thread has ended.
    pub fn ask(&self, op: Op, patience: Duration) -> Result<Reply, RecvTimeoutError> {
        let (to, replies) = unbounded();
        self.send(Command::Ask { ops: vec![(0, op)], to });
        replies.recv_timeout(patience)
    }

    /// Waits a while until every shard has the outcomes, so that a client that goes leaves no lock for others to clear (T5).
    pub fn settle(&self) {
        // If it takes too long, they are cleared all the same (T4).
        let _ = self.ask(Op::Settle, SETTLING);
    }

    /// Whether the thread has ended, which it does by itself only when something broke.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Rows in progress.
struct Run {
    rows: Vec<Row>,
    scheduler: Scheduler,
    given: Time,
    left: usize,
    first_sent: Option<Time>,
    last_done: Time,
    segment: Segment,
}

struct Worker {
    outlet: Outlet,
    clock: Clock,
    orders: Receiver<Command>,
    reports: Sender<News>,
    run: Option<Run>,
    next_op: u64,
    next_asked: u64,
    /// By tag, what has no answer so far: who asked, and under which number.
    asked: HashMap<u64, (usize, Sender<Reply>)>,
    /// Why a server turned this client away, until it answers something.
    refusals: BTreeMap<NodeId, Arc<str>>,
}

impl Worker {
    fn new(outlet: Outlet, clock: Clock, orders: Receiver<Command>, reports: Sender<News>) -> Worker {
        Worker {
            outlet,
            clock,
            orders,
            reports,
            run: None,
            next_op: FIRST_OP,
            next_asked: FIRST_ASKED,
            asked: HashMap::new(),
            refusals: BTreeMap::new(),
        }
    }

    fn run(mut self, mut poll: Poll) {
        let mut events = Events::with_capacity(256);
        let mut received = Vec::new();
        while self.step(&mut poll, &mut events, &mut received) {}
    }

    /// One turn of the loop, which begins with a wait; `false` to stop.
    fn step(&mut self, poll: &mut Poll, events: &mut Events, received: &mut Vec<Item>) -> bool {
        if let Err(e) = poll.poll(events, Some(self.timeout()))
            && e.kind() != io::ErrorKind::Interrupted
        {
            log::error!("the coordinator cannot poll: {e}");
            return false;
        }
        let now = self.clock.now();
        for event in events.iter().filter(|e| e.token() != WAKER) {
            self.outlet.conns.wake(event);
        }
        let mut out = Output::default();
        self.outlet.conns.dial_resolved(now);
        self.outlet.conns.receive(now, received);
        for item in std::mem::take(received) {
            if let (Role::Dialled(server), Received::Response(_)) = (item.role, &item.received) {
                self.refusals.remove(&server);
            }
            let role = item.role;
            if let Some(why) = self.outlet.take(now, item, &mut out) {
                if let Role::Dialled(server) = role {
                    self.refusals.insert(server, why.as_str().into());
                }
                self.tell(News::TurnedAway(why));
            }
        }
        if !self.obey(now, &mut out) {
            return false;
        }
        self.turn(now, out);
        self.outlet.conns.flush(received);
        true
    }

    fn timeout(&self) -> Duration {
        if self.outlet.conns.has_more() {
            return Duration::ZERO;
        }
        let now = self.clock.now();
        let deadline = self.outlet.coordinator.next_deadline();
        deadline.map_or(Duration::from_secs(1), |d| until(now, d)).min(Duration::from_secs(1))
    }

    fn obey(&mut self, now: Time, out: &mut Output) -> bool {
        loop {
            match self.orders.try_recv() {
                Ok(Command::Rows { rows, in_flight, race }) => {
                    let mut scheduler = Scheduler::new(in_flight, race);
                    for (index, row) in rows.iter().enumerate() {
                        scheduler.push(index, &row.accounts);
                    }
                    let left = rows.len();
                    let segment = Segment::default();
                    let (first_sent, last_done) = (None, now);
                    self.run =
                        Some(Run { rows, scheduler, given: now, left, first_sent, last_done, segment });
                }
                Ok(Command::Op(op)) => {
                    let tag = self.next_op;
                    self.next_op += 1;
                    self.outlet.coordinator.step(now, Input::Submit { tag, op }, out);
                }
                Ok(Command::Ask { ops, to }) => {
                    for (number, op) in ops {
                        let tag = self.next_asked;
                        self.next_asked += 1;
                        self.asked.insert(tag, (number, to.clone()));
                        self.outlet.coordinator.step(now, Input::Submit { tag, op }, out);
                    }
                }
                Ok(Command::Hints(servers)) => {
                    for server in servers {
                        self.outlet.coordinator.step(now, Input::Hint(server), out);
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Submits what may go, and again when answers that came without a wait release more.
    fn turn(&mut self, now: Time, mut out: Output) {
        loop {
            if let Some(run) = &mut self.run {
                while let Some(index) = run.scheduler.next() {
                    let Row { tag, op, .. } = run.rows[index];
                    self.outlet.coordinator.step(now, Input::Submit { tag, op }, &mut out);
                }
                run.segment.peak_in_flight = run.segment.peak_in_flight.max(run.scheduler.in_flight());
            }
            let answers = self.outlet.end_turn(now, &mut out);
            // A send that failed may have brought answers as well.
            if answers.is_empty() && out.answers.is_empty() {
                return;
            }
            for answer in answers {
                self.answer(now, answer.tag, answer.outcome, answer.first_sent);
            }
            self.finish_run();
        }
    }

    fn answer(&mut self, now: Time, tag: u64, outcome: Outcome, first_sent: Option<Time>) {
        if tag >= FIRST_ASKED {
            return self.reply(tag, outcome);
        }
        if tag >= FIRST_OP {
            return self.tell(News::Op(outcome));
        }
        // Tags ascend within a run, so that its first one tells the index.
        let index = self.run.as_ref().and_then(|run| {
            let index = tag.checked_sub(run.rows.first()?.tag)? as usize;
            (index < run.rows.len() && run.scheduler.is_in_flight(index)).then_some(index)
        });
        let (Some(run), Some(index)) = (&mut self.run, index) else {
            return self.tell(News::Resolved { tag, outcome });
        };
        run.scheduler.finish(index);
        run.left -= 1;
        let latency = first_sent.map(|sent| now.since(sent));
        if let (Some(latency), Some(sent)) = (latency, first_sent) {
            run.first_sent = Some(run.first_sent.map_or(sent, |first| first.min(sent)));
            run.last_done = now;
            run.segment.latency.record(latency);
            run.segment.held_back.record(sent.since(run.given));
            if run.rows[index].cross {
                run.segment.cross.record(latency);
            } else {
                run.segment.intra.record(latency);
            }
        }
        self.tell(News::Row { tag, outcome, latency });
    }

    fn reply(&mut self, tag: u64, outcome: Outcome) {
        let Some((number, to)) = self.asked.remove(&tag) else { return };
        let unreached = matches!(
            outcome,
            Outcome::Unknown | Outcome::Aborted(Reason::NoQuorum) | Outcome::NoAnswer | Outcome::Confirmed(_)
        );
        let refusal = self.refusals.values().next().filter(|_| unreached).cloned();
        // Whoever asked may have given up.
        let _ = to.send(Reply { number, outcome, refusal });
    }

    fn finish_run(&mut self) {
        if self.run.as_ref().is_some_and(|run| run.left == 0)
            && let Some(mut run) = self.run.take()
        {
            run.segment.span = run.first_sent.map_or(Duration::ZERO, |first| run.last_done.since(first));
            self.tell(News::RowsDone(Box::new(run.segment)));
        }
    }

    fn tell(&self, news: News) {
        // Nobody listens any more only when the whole run is being torn down.
        let _ = self.reports.send(news);
    }
}

#[cfg(test)]
mod tests;
