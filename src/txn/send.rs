//! What goes into which frame, and when.

use std::time::Duration;

use crate::bank::command;
use crate::txn::coordinator::{Coordinator, Life};
use crate::txn::group::Group;
use crate::txn::link::{Ask, Sent, UnitId, Work};
use crate::txn::message::Request;
use crate::txn::port::Output;
use crate::types::{NodeId, Time, Value};

/// Outcomes wait this long for a request that they can travel ahead of (T3).
const OUTCOME_DELAY: Duration = Duration::from_millis(1);

impl Coordinator {
    /// Sends what waits for one shard, in as few frames as it fits.
    pub(super) fn flush(&mut self, now: Time, index: usize, out: &mut Output) {
        if self.links[index].pause > now {
            return;
        }
        self.links[index].pause = Time::default();
        let Some(leader) = self.links[index].leader() else { return };
        let due = self.due(now, index);
        if due.is_empty() {
            return;
        }
        let mut frame = Frame::default();
        let groups = due.iter().filter_map(|(work, _)| Some(&self.groups[&work.group()?]));
        frame.blocks.reserve(groups.map(Group::block_bytes).sum::<usize>().min(self.limits.frame_bytes));
        let full = self.links[index].full_until > now;
        let mut sessions = self.links[index].open_sessions();
        if let Life::Open(session) = self.life {
            sessions.insert(session);
        }
        self.links[index].told_marks.retain(|session, _| sessions.contains(session));
        for session in sessions {
            let mark = self.mark(index, session);
            let told = self.links[index].told_marks.entry(session).or_insert(1);
            // What is left of a full log is not for memory to be freed.
            if mark > *told && !full {
                *told = mark;
                command::put_mark(&mut frame.blocks, session, mark);
                frame.ahead += 1;
            }
        }
        for (work, id) in due {
            if let Work::Read { ask, .. } = work {
                // Ordered behind the outcomes on the same connection.
                self.send_frame(now, index, leader, std::mem::take(&mut frame), out);
                let request = self.request_number();
                let question = match ask {
                    Ask::Balance(account) => Request::Read { request, account, local: false },
                    Ask::Status(id) => Request::Status { request, id },
                };
                out.send.push((leader, question));
                self.mark_sent(now, index, leader, request, vec![id], 0);
                let link = &mut self.links[index];
                if let Some(mut sent) = link.sent.remove(&request) {
                    sent.until = now + self.timeouts.read() + self.timeouts.unreachable();
                    sent.check = Some(now + self.timeouts.unreachable());
                    link.sent_reads.insert(request, sent);
                }
                continue;
            }
            let bytes = match work {
                Work::Expire { session } => self.retiring[&session].block_bytes(),
                work => work.group().map_or(64, |g| self.groups[&g].block_bytes()),
            };
            if frame.blocks.len() + bytes > self.limits.frame_bytes {
                self.send_frame(now, index, leader, std::mem::take(&mut frame), out);
            }
            match work {
                Work::Open => command::put_open(&mut frame.blocks),
                Work::OpenFor { .. } => command::named::put_open(&mut frame.blocks),
                Work::Touch { session } => command::put_touch(&mut frame.blocks, session),
                Work::Fence { group } => self.groups[&group].put_fence(&mut frame.blocks),
                Work::Outcome { group } => self.groups[&group].put_outcome(&mut frame.blocks),
                Work::Close { session } => command::put_close(&mut frame.blocks, session),
                Work::Expire { session } => {
                    command::put_expire(&mut frame.blocks, session, self.retiring[&session].live());
                }
                Work::Execute { group } => self.groups[&group].put_execute(&mut frame.blocks),
                Work::Read { .. } => unreachable!("reads were sent above"),
            }
            frame.units.push(id);
        }
        self.send_frame(now, index, leader, frame, out);
    }

    /// The units of one shard that may go now. Outcomes alone wait a little for company.
    fn due(&mut self, now: Time, index: usize) -> Vec<(Work, UnitId)> {
        let link = &self.links[index];
        let (outcomes, others): (Vec<_>, Vec<_>) = link
            .ready
            .iter()
            .copied()
            .filter(|(work, _)| self.may_send(*work))
            .partition(|(work, _)| matches!(work, Work::Outcome { .. }));
        let link = &mut self.links[index];
        if outcomes.is_empty() {
            // They may have been dropped while they waited.
            link.outcomes_due = None;
            return others;
        }
        let outcomes_due = *link.outcomes_due.get_or_insert(now + OUTCOME_DELAY);
        if others.is_empty() && outcomes_due > now {
            return Vec::new();
        }
        link.outcomes_due = None;
        [outcomes, others].concat()
    }

    fn may_send(&self, work: Work) -> bool {
        let group = match work {
            Work::Execute { group } => &self.groups[&group],
            // Without one of the shards the session cannot expire, and closing it would only fill the logs. (Nobody looks
            // for the leader of a shard that has answered.)
            Work::Close { session } => {
                return self.retiring[&session].is_begun() || self.links.iter().all(|l| l.leader().is_some());
            }
            _ => return true,
        };
        // T8: nothing of a transaction is sent while it is not known that every participant has a majority.
        let reachable = group.first_sent.is_some()
            || group.participants.iter().all(|p| self.links[p.index()].leader().is_some());
        reachable && !self.lacks_participant(group)
    }

    fn send_frame(&mut self, now: Time, index: usize, to: NodeId, frame: Frame, out: &mut Output) {
        if frame.units.is_empty() && frame.blocks.is_empty() {
            return;
        }
        let request = self.request_number();
        out.send.push((to, Request::Submit { request, blocks: Value::from_slice(&frame.blocks) }));
        self.mark_sent(now, index, to, request, frame.units, frame.ahead);
    }

    fn mark_sent(
        &mut self,
        now: Time,
        index: usize,
        to: NodeId,
        request: u64,
        units: Vec<UnitId>,
        ahead: usize,
    ) {
        let link = &mut self.links[index];
        for id in &units {
            let unit = link.units.get_mut(id).expect("T8: only waiting units are sent");
            unit.in_flight = true;
            unit.copies += 1;
            link.ready.remove(&(unit.work, *id));
            match unit.work {
                Work::Read { tag, .. } => {
                    self.first_sent.entry(tag).or_insert(now);
                }
                work => {
                    if let Some(group) = work.group().and_then(|g| self.groups.get_mut(&g)) {
                        group.first_sent.get_or_insert(now);
                    }
                }
            }
        }
        let until = now + self.timeouts.unreachable();
        link.sent.insert(request, Sent { to, until, check: None, units, ahead });
    }

    pub(super) fn request_number(&mut self) -> u64 {
        self.next_request += 1;
        self.next_request - 1
    }
}

/// Blocks that travel together.
#[derive(Default)]
struct Frame {
    blocks: Vec<u8>,
    units: Vec<UnitId>,
    ahead: usize,
}
