//! Decided entries for who lacks them: from memory, or read from disk.

use crate::paxos::message::*;
use crate::paxos::output::{Event, Output, Purpose, ReadLog};
use crate::paxos::replica::{Replica, Role};
use crate::types::{Ballot, NodeId, Record, Slot, Time, Value};

impl Replica {
    /// Entries that a [`ReadLog`] asked for.
    pub fn log_read(
        &mut self,
        now: Time,
        purpose: Purpose,
        first: Slot,
        entries: Vec<(Ballot, Value)>,
        out: &mut Output,
    ) {
        let (ballot, decided) = (self.promised, self.decided);
        match purpose {
            Purpose::Salvage => self.salvage(now, first, entries, out),
            Purpose::Fetch(to) if entries.is_empty() => out.gone.push(to),
            Purpose::Fetch(to) => out.now.push((to, Message::Entries(Entries { first, entries }))),
            Purpose::CatchUp(to) => {
                let Role::Leader(leader) = &mut self.role else { return };
                let round = leader.round;
                let Some(progress) = leader.progress.get_mut(&to) else { return };
                progress.reading = false;
                if progress.sent.next() != first {
                    return;
                }
                if entries.is_empty() {
                    progress.gone = true;
                    return out.gone.push(to);
                }
                progress.sent = Slot(first.0 + entries.len() as u64 - 1);
                progress.sent_in_round = round;
                let values = entries.into_iter().map(|(_, value)| value).collect();
                out.now.push((to, Message::Accept(Accept { ballot, decided, first, values })));
            }
        }
    }

    /// S2: a [`ReadLog`] met a decided value that is not whole on disk any more. Whoever wanted it may have it with a
    /// snapshot, and this server asks the others for it.
    pub fn log_unreadable(&mut self, now: Time, purpose: Purpose, slot: Slot, out: &mut Output) {
        let pause = self.timeouts.heartbeat();
        match purpose {
            // It comes as those do that are lost, if the disk does not change its mind.
            Purpose::Salvage => return self.salvage_again(now + pause),
            Purpose::Fetch(to) => out.gone.push(to),
            Purpose::CatchUp(to) => {
                let Role::Leader(leader) = &mut self.role else { return };
                let Some(progress) = leader.progress.get_mut(&to) else { return };
                progress.reading = false;
                progress.gone = true;
                out.gone.push(to);
            }
        }
        // Others may be unable to read it, too, and ask this server in turn.
        if self.unreadable.is_some_and(|(_, asked)| now.since(asked) < pause) {
            return;
        }
        self.unreadable = Some((slot, now));
        out.now.extend(self.peers().into_iter().map(|peer| (peer, Message::Fetch(Fetch { from: slot }))));
    }

    /// A value comes that could not be read any more: it is written once more.
    pub(super) fn restore_entry(&mut self, m: &Entries, out: &mut Output) {
        if self.unreadable.is_none_or(|(slot, _)| slot != m.first) || m.first > self.decided {
            return;
        }
        let Some((ballot, value)) = m.entries.first() else { return };
        if self.fits(value, out) {
            let (slot, ballot) = (m.first, (*ballot).min(self.promised));
            out.records.push(Record::Learn { slot, ballot, value: value.clone() });
            out.events.push(Event::Rewritten { slot });
            self.unreadable = None;
        }
    }

    pub(super) fn on_fetch(&mut self, from: NodeId, m: Fetch, out: &mut Output) {
        if m.from > self.known() {
            out.events.push(Event::Ignored { from, what: "a fetch of undecided slots" });
        } else if m.from <= self.log.floor() || m.from > self.decided {
            out.reads.push(self.read_log(Purpose::Fetch(from), m.from));
        } else {
            let entries = self.log.slice(m.from, self.decided, self.limits.catch_up_bytes);
            out.now.push((from, Message::Entries(Entries { first: m.from, entries })));
        }
    }

    pub(super) fn read_log(&self, purpose: Purpose, from: Slot) -> ReadLog {
        ReadLog { purpose, from, to: self.known(), max_bytes: self.limits.catch_up_bytes }
    }
}
