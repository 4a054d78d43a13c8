//! One thread of clients of the simulation: coordinators that ship, in a closed loop, as [`crate::bench::drive`] has them on
//! real connections.

use std::collections::VecDeque;

use crate::bench::draw::{Asked, Kind, Source};
use crate::bench::predict::log::count_blocks;
use crate::bench::predict::server::frame_bytes;
use crate::bench::predict::tally::Tally;
use crate::bench::predict::work::{
    APPLIED, BLOCK, BYTE, LINK, MESSAGE, PREPARED, SETTLED, TAKEN, TURN, Work,
};
use crate::bench::predict::world::{Sending, Turn, processor_ns};
use crate::config::{Timeouts, Topology};
use crate::sim::{Packet, Place};
use crate::txn::message::Request;
use crate::txn::{self, Coordinator, Op, Outcome};
use crate::types::{ClientId, NodeId, Time};

/// Of a tag, the bits that say which transfer of its batch it is.
const INDEX_BITS: u32 = 20;
/// The tag of a question that is no transfer.
const QUESTION: u64 = u64::MAX;

/// What clients are to do at present.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Find every shard's leader.
    Search,
    Load,
    /// Ask for nothing new, and wait for all answers.
    Drain,
    /// See to it that all outcomes are applied.
    Settle,
}

struct Batch {
    due_ns: u64,
    left: usize,
    asked: Vec<Asked>,
}

struct Client {
    number: u32,
    coordinator: Coordinator,
    inbox: Vec<txn::Input>,
    arrived: Work,
    out: txn::Output,
    batches: VecDeque<Batch>,
    /// The number of the first of these.
    first: u64,
    under_way: usize,
    /// The question of this phase is asked and not answered.
    asking: bool,
    deadline: Option<Time>,
}

pub struct Clients {
    topology: Topology,
    members: Vec<Client>,
    /// By place in `members`: for whom something came.
    touched: Vec<usize>,
    drawn: Vec<Op>,
    spare: Vec<Vec<Asked>>,
    frame: Vec<u8>,
}

impl Clients {
    /// Clients numbered from `first` on.
    pub fn new(topology: Topology, first: u32, count: u32) -> Clients {
        let client = |number| Client {
            number,
            coordinator: Coordinator::new(topology, Timeouts::default(), Time(0)),
            inbox: Vec::new(),
            arrived: Work::default(),
            out: txn::Output::default(),
            batches: VecDeque::new(),
            first: 0,
            under_way: 0,
            asking: false,
            deadline: None,
        };
        Clients {
            topology,
            members: (first..first + count).map(client).collect(),
            touched: Vec::new(),
            drawn: Vec::new(),
            spare: Vec::new(),
            frame: Vec::new(),
        }
    }

    fn member(&self, number: u32) -> usize {
        (number - self.members[0].number) as usize
    }

    pub fn receive(&mut self, client: u32, from: NodeId, packet: Packet, bytes: usize) {
        let n = self.member(client);
        let Packet::Response(_, response) = packet else { panic!("{from} sends a client {packet:?}") };
        let member = &mut self.members[n];
        member.arrived.add(MESSAGE, 1);
        member.arrived.add(BYTE, bytes as f64);
        member.inbox.push(txn::Input::Response { from, response });
        self.touch(n);
    }

    pub fn connected(&mut self, client: u32, server: NodeId) {
        let n = self.member(client);
        self.members[n].inbox.push(txn::Input::Connected(server));
        self.touch(n);
    }

    fn touch(&mut self, n: usize) {
        if self.touched.last() != Some(&n) {
            self.touched.push(n);
        }
    }

    /// A phase begins: everybody has a turn.
    pub fn begin(&mut self, phase: Phase) {
        let op = match phase {
            Phase::Search => Some(Op::Confirm { anew: true }),
            Phase::Settle => Some(Op::Settle),
            Phase::Load | Phase::Drain => None,
        };
        for member in &mut self.members {
            if let Some(op) = op {
                member.inbox.push(txn::Input::Submit { tag: QUESTION, op });
                member.asking = true;
            }
        }
        self.touched = (0..self.members.len()).collect();
    }

    /// Whether everything is answered that was asked for.
    pub fn is_done(&self) -> bool {
        self.members.iter().all(|member| !member.asking && member.under_way == 0)
    }

    pub fn has_input(&self) -> bool {
        !self.touched.is_empty()
    }

    pub fn next_deadline(&self) -> Option<Time> {
        self.members.iter().filter_map(|member| member.deadline).min()
    }

    /// Runs the turn of the loop that begins now; `None` if there is nothing to do.
    ///
    /// # Errors
    ///
    /// Something was answered that a bank without failures does not answer.
    pub fn turn(
        &mut self,
        now_ns: u64,
        costs: &Work,
        source: &mut Source,
        tally: &mut Tally,
    ) -> Result<Option<Turn>, String> {
        let now = Time(now_ns / 1000);
        let due = |member: &Client| member.deadline.is_some_and(|at| at <= now);
        self.touched.extend((0..self.members.len()).filter(|n| due(&self.members[*n])));
        if self.touched.is_empty() {
            return Ok(None);
        }
        self.touched.sort_unstable();
        self.touched.dedup();
        let mut turn = Turn::default();
        turn.work.add(TURN, 1);
        let begun = processor_ns();
        for n in std::mem::take(&mut self.touched) {
            self.serve(n, now_ns, costs, source, tally, &mut turn)?;
        }
        turn.took_ns = processor_ns() - begun;
        turn.deadline = self.next_deadline();
        Ok(Some(turn))
    }

    fn serve(
        &mut self,
        n: usize,
        now_ns: u64,
        costs: &Work,
        source: &mut Source,
        tally: &mut Tally,
        turn: &mut Turn,
    ) -> Result<(), String> {
        let now = Time(now_ns / 1000);
        let topology = self.topology;
        let member = &mut self.members[n];
        turn.work.add_all(&std::mem::take(&mut member.arrived));
        for input in std::mem::take(&mut member.inbox) {
            member.coordinator.step(now, input, &mut member.out);
        }
        let mut sent = Vec::new();
        loop {
            while tally.phase == Phase::Load && member.under_way < tally.in_flight {
                let mut asked = self.spare.pop().unwrap_or_default();
                let number = member.first + member.batches.len() as u64;
                while asked.len() < tally.batch {
                    source.draw(&mut self.drawn);
                    for op in self.drawn.drain(..) {
                        let tag = number << INDEX_BITS | asked.len() as u64;
                        let one = Asked::of(&op, &topology);
                        turn.work.add(if one.kind == Kind::Across { PREPARED } else { TAKEN }, 1);
                        asked.push(one);
                        member.coordinator.step(now, txn::Input::Submit { tag, op }, &mut member.out);
                    }
                }
                member.under_way += 1;
                member.batches.push_back(Batch { due_ns: now_ns, left: asked.len(), asked });
            }
            member.coordinator.step(now, txn::Input::TurnEnd, &mut member.out);
            turn.work.add(LINK, topology.clusters);
            let out = std::mem::take(&mut member.out);
            sent.extend(out.send);
            turn.connect.extend(out.connect.into_iter().map(|server| (Place::Client(member.number), server)));
            if out.answers.is_empty() {
                break;
            }
            for answer in out.answers {
                if answer.tag == QUESTION {
                    member.asking = false;
                    if let Outcome::Confirmed(reaches) = &answer.outcome
                        && !reaches.iter().all(|reach| matches!(reach, txn::Reach::Leader { .. }))
                    {
                        member.asking = true;
                        let op = Op::Confirm { anew: true };
                        member.coordinator.step(
                            now,
                            txn::Input::Submit { tag: QUESTION, op },
                            &mut member.out,
                        );
                    }
                    continue;
                }
                let place = (answer.tag >> INDEX_BITS) - member.first;
                let batch = &mut member.batches[place as usize];
                let asked = batch.asked[(answer.tag & ((1 << INDEX_BITS) - 1)) as usize];
                turn.work.add(if asked.kind == Kind::Across { SETTLED } else { APPLIED }, 1);
                batch.left -= 1;
                let whole = (batch.left == 0).then_some(batch.due_ns);
                tally.answer(now_ns, asked, &answer.outcome, whole)?;
                if whole.is_some() {
                    member.under_way -= 1;
                    while member.batches.front().is_some_and(|batch| batch.left == 0)
                        && let Some(mut batch) = member.batches.pop_front()
                    {
                        member.first += 1;
                        batch.asked.clear();
                        self.spare.push(batch.asked);
                    }
                }
            }
        }
        member.deadline = member.coordinator.next_deadline();
        let me = ClientId(u64::from(member.number));
        for (to, request) in sent {
            if let Request::Submit { blocks, .. } = &request {
                count_blocks(blocks, |_, _| turn.work.add(BLOCK, 1));
            }
            let packet = Packet::Request(me, request);
            let bytes = frame_bytes(&packet, &mut self.frame);
            turn.work.add(MESSAGE, 1);
            turn.work.add(BYTE, bytes as f64);
            turn.send.push(Sending { to: Place::Server(to), packet, bytes, at: None });
        }
        // All that one client asks for in a turn leaves when it has been served, the next ones' after that.
        let so_far = turn.work.at(costs);
        turn.send.iter_mut().for_each(|sending| _ = sending.at.get_or_insert(so_far));
        Ok(())
    }
}
