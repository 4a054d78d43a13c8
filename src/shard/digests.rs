//! P4 between servers: the digests of their states, compared at agreed slots.
//!
//! An *agreed slot* is one whose number [`Limits::digest_slots`](crate::config::Limits::digest_slots) divides. After
//! applying one, a server *reports* its digest to the others. Everybody keeps, for the latest agreed slots, a *view*: who
//! reported what. A report carries the whole view of its sender, so that what one server knows gets around where a link
//! is cut. The view of the latest agreed slot is sent again at a heartbeat's pace, with a question for theirs, to all who
//! have not shown the same one; once all who are up have, there is silence. A view in which digests differ goes to all
//! whenever it grows: under load the next agreed slot comes before the heartbeat.
//!
//! What a view of a cluster of n servers says to a server whose own report is in it:
//!
//! * *Agreed*: a majority of the n reported its digest. The highest such slot is confirmed.
//! * *Outvoted*: a majority reported one other digest. It stops at once.
//! * *Hopeless*: they differ, and whatever the missing ones report, there will be no majority. It stops at once.
//! * *Disputed*: they differ, and the missing ones may still tell who is right. For [`PATIENCE`] election time-outs it
//!   waits, and meanwhile tells clients nothing of its state ([`Comparison::is_silent`]). Then it stops, if a majority of
//!   the servers has reported and shown exactly this view: all of these wait for the same news, and stop as well.
//!   Otherwise it goes on, and the next agreed slot tells: it is cut off and cannot serve anybody, or others know more and
//!   will say so.
//!
//! Once a slot is confirmed, what differed at earlier ones is settled: a digest stands for the way to a state as well
//! ([`Bank::digest`](crate::bank::Bank::digest)), so who was wrong there has started again since, and is right now.
//!
//! Whoever stops says before what it knows. Of a majority that agree, not all can stop: whoever stops over a dispute has
//! shown its view to a majority, any two of these majorities share a server, and views only grow, so one view of those
//! that stop contains all others, with a report of each; were these reports of a majority and equal, then whoever held
//! that view would not have stopped. In a cluster of three, one faulty server can thus take one healthy one down with it,
//! while nobody can reach the third, but never both.
//!
//! Deliberately absent: what a digest is made of, and what to do about a difference. A server that starts again computes
//! its state anew from its log.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::config::Timeouts;
use crate::paxos::Message;
use crate::paxos::message::Digests;
use crate::shard::{Event, Output};
use crate::types::{NodeId, Slot, Time};

/// Agreed slots of which views are kept, of those that this server has reached.
const KEPT: usize = 8;
/// And of those that it has not: while it lags, it compares with what others reported before.
const AHEAD: usize = 1024;
/// Election time-outs that a dispute lasts at most: within one, whoever is up is heard, but it may have to catch up first.
const PATIENCE: u32 = 3;

/// Who reported which digest.
type Reports = BTreeMap<NodeId, u64>;

/// What is known of one agreed slot.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
struct View {
    reports: Reports,
    /// What each of the others has shown to know.
    shown: BTreeMap<NodeId, Reports>,
    /// Whether it went to all since this server's report, or what differs from others, came in.
    sent: bool,
    disputed: Option<Time>,
}

enum Finding {
    /// Too little is known, and nothing differs.
    Open,
    Agreed(u64),
    Outvoted,
    Hopeless,
    Disputed,
}

impl View {
    fn judge(&self, me: NodeId, servers: usize) -> Finding {
        let Some(mine) = self.reports.get(&me) else { return Finding::Open };
        let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
        for digest in self.reports.values() {
            *counts.entry(*digest).or_default() += 1;
        }
        let most = counts.values().copied().max().unwrap_or(0);
        let majority = servers / 2 + 1;
        if counts[mine] >= majority {
            Finding::Agreed(*mine)
        } else if most >= majority {
            Finding::Outvoted
        } else if most + (servers - self.reports.len()) < majority {
            Finding::Hopeless
        } else if counts.len() > 1 {
            Finding::Disputed
        } else {
            Finding::Open
        }
    }

    fn differs(&self) -> bool {
        let first = self.reports.values().next();
        self.reports.values().any(|digest| Some(digest) != first)
    }

    /// How many of those that reported, this server included, have shown exactly this view.
    fn backing(&self) -> usize {
        let backs =
            |(id, shown): &(&NodeId, &Reports)| self.reports.contains_key(id) && **shown == self.reports;
        1 + self.shown.iter().filter(backs).count()
    }
}

/// Why a server stops for good: its state is not the one that others have (P4).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Divergence {
    pub server: NodeId,
    /// The agreed slot at which they differ.
    pub slot: Slot,
    /// The last one before it at which a majority agreed with this server, as far as it remembers.
    pub agreed: Option<Slot>,
    /// Those that reported another digest than this server, and which.
    pub others: Vec<(NodeId, u64)>,
    /// Whether a majority agrees on another digest; otherwise nobody can tell who is right.
    pub outvoted: bool,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let others: Vec<String> = self.others.iter().map(|(id, _)| id.to_string()).collect();
        let (first, last) = (self.agreed.unwrap_or_default().next(), self.slot);
        write!(
            f,
            "P4: the state of {} differs from that of {} since one of the slots {first} to {last}",
            self.server,
            others.join(" and ")
        )?;
        f.write_str(match self.outvoted {
            true => {
                ", and a majority agrees against it; start it again, so that it computes its state anew from its log; if \
                 it stops again, replace its disk, or its program if that is not the one of the others"
            }
            false => {
                ", and no majority can be heard that tells which is right, so that all of these stop; start all servers \
                 of the cluster, so that they compute their states anew from their logs; if some stop again, compare \
                 their disks and programs"
            }
        })
    }
}

impl std::error::Error for Divergence {}

/// One server's part in comparing digests. See the module documentation.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Comparison {
    me: NodeId,
    /// The servers of the cluster, this one included.
    servers: Vec<NodeId>,
    /// Agreed slots are multiples of this.
    every: u64,
    pace: Duration,
    patience: Duration,
    views: BTreeMap<Slot, View>,
    /// The last slot that this server applied.
    reached: Slot,
    /// Whether something came in since the last turn's end.
    news: bool,
    confirmed: Option<(Slot, u64)>,
    /// When the latest view goes once more to those who have not shown the same.
    repeat_due: Option<Time>,
    /// When the first open dispute ends.
    dispute_ends: Option<Time>,
}

impl Comparison {
    pub fn new(me: NodeId, servers: Vec<NodeId>, timeouts: &Timeouts, every: u64) -> Comparison {
        assert!(every > 0, "P4: some slot is an agreed one");
        Comparison {
            me,
            servers,
            every,
            pace: timeouts.heartbeat(),
            patience: timeouts.election() * PATIENCE,
            views: BTreeMap::new(),
            reached: Slot::ZERO,
            news: false,
            confirmed: None,
            repeat_due: None,
            dispute_ends: None,
        }
    }

    /// The same with other agreed slots; before anything is reported.
    pub fn with_every(self, every: u64) -> Comparison {
        Comparison { every, ..self }
    }

    /// The last agreed slot at which this server's digest was that of a majority.
    pub fn confirmed(&self) -> Option<(Slot, u64)> {
        self.confirmed
    }

    /// Whether a dispute is open: clients are told nothing of a state that may be wrong. This ends by itself.
    pub fn is_silent(&self) -> bool {
        self.dispute_ends.is_some()
    }

    /// When [`Comparison::turn_end`] wants to be called.
    pub fn next_deadline(&self) -> Option<Time> {
        self.repeat_due.into_iter().chain(self.dispute_ends).min()
    }

    /// This server applied a slot, and has this digest now.
    pub fn applied(&mut self, slot: Slot, digest: u64) {
        self.reached = slot;
        if slot.0.is_multiple_of(self.every) {
            self.views.entry(slot).or_default().reports.insert(self.me, digest);
            self.news = true;
            self.trim();
        }
    }

    /// Another server says what it knows.
    pub fn hear(&mut self, from: NodeId, m: &Digests, out: &mut Output) {
        let expected = m.slot > Slot::ZERO && m.slot.0.is_multiple_of(self.every);
        if !expected || from == self.me || !self.servers.contains(&from) {
            return;
        }
        self.news = true;
        let view = self.views.entry(m.slot).or_default();
        let known = view.reports.len();
        for (server, digest) in &m.reports {
            if *server == from {
                // A server that started again may have found that it was wrong.
                view.reports.insert(from, *digest);
            } else if self.servers.contains(server) && *server != self.me {
                view.reports.entry(*server).or_insert(*digest);
            }
        }
        view.shown.insert(from, m.reports.clone());
        view.sent &= view.reports.len() == known || !view.differs();
        if m.asks {
            tell(m.slot, view, [from], false, out);
        }
        self.trim();
    }

    fn trim(&mut self) {
        let ahead = self.views.range(self.reached.next()..).count();
        for _ in KEPT..self.views.len() - ahead {
            self.views.pop_first();
        }
        // The farthest go: what comes next is compared without a hole.
        for _ in AHEAD..ahead {
            self.views.pop_last();
        }
    }

    /// This server stood still; whoever is to tell who is right gets its time anew.
    pub fn resume(&mut self) {
        self.views.values_mut().for_each(|view| view.disputed = None);
        self.news = true;
    }

    /// Everything of this turn has been heard and applied: reports go out, and views are judged.
    pub fn turn_end(&mut self, now: Time, out: &mut Output) {
        let due = self.next_deadline().is_some_and(|due| due <= now);
        if !std::mem::take(&mut self.news) && !due {
            return;
        }
        self.dispute_ends = None;
        let majority = self.servers.len() / 2 + 1;
        let mut stop = None;
        for (slot, view) in &self.views {
            if let Finding::Agreed(digest) = view.judge(self.me, self.servers.len())
                && self.confirmed.is_none_or(|(confirmed, _)| confirmed < *slot)
            {
                self.confirmed = Some((*slot, digest));
                out.events.push(Event::DigestConfirmed { slot: *slot });
            }
        }
        // With whom a majority agrees later, it need not ask who was right before.
        let settled = self.confirmed.map_or(Slot::ZERO, |(slot, _)| slot);
        for (slot, view) in &mut self.views {
            let finding = match view.judge(self.me, self.servers.len()) {
                _ if *slot <= settled => Finding::Open,
                finding => finding,
            };
            if !matches!(finding, Finding::Disputed) {
                view.disputed = None;
            }
            match finding {
                Finding::Open | Finding::Agreed(_) => {}
                Finding::Outvoted => stop = stop.or(Some((*slot, true))),
                Finding::Hopeless => stop = stop.or(Some((*slot, false))),
                Finding::Disputed => {
                    if view.disputed.is_none() {
                        out.events.push(Event::DigestsDiffer { slot: *slot });
                    }
                    let ends = *view.disputed.get_or_insert(now) + self.patience;
                    if now < ends {
                        self.dispute_ends = Some(self.dispute_ends.map_or(ends, |e| e.min(ends)));
                    } else if view.backing() >= majority {
                        stop = stop.or(Some((*slot, false)));
                    }
                }
            }
        }
        self.send(now, out);
        if let Some((slot, outvoted)) = stop {
            self.stop(slot, outvoted, out);
        }
    }

    fn send(&mut self, now: Time, out: &mut Output) {
        let (me, peers) = (self.me, self.peers());
        let reported = |view: &View| view.reports.contains_key(&me);
        for (slot, view) in self.views.iter_mut().filter(|(_, view)| reported(view) && !view.sent) {
            view.sent = true;
            self.repeat_due = Some(now + self.pace);
            tell(*slot, view, peers.iter().copied(), false, out);
        }
        let latest = self.views.iter().rfind(|(_, view)| reported(view));
        let Some((slot, view)) = latest else { return self.repeat_due = None };
        let behind: Vec<NodeId> =
            peers.into_iter().filter(|peer| view.shown.get(peer) != Some(&view.reports)).collect();
        self.repeat_due = match self.repeat_due {
            _ if behind.is_empty() => None,
            Some(due) if due > now => Some(due),
            due => {
                if due.is_some() {
                    tell(*slot, view, behind, true, out);
                }
                Some(now + self.pace)
            }
        };
    }

    /// The last words are what this server knows: of those that hear them, some may go on.
    fn stop(&self, slot: Slot, outvoted: bool, out: &mut Output) {
        let view = &self.views[&slot];
        tell(slot, view, self.peers(), false, out);
        let mine = view.reports[&self.me];
        let others =
            view.reports.iter().filter(|(_, digest)| **digest != mine).map(|(id, digest)| (*id, *digest));
        out.stop = Some(Divergence {
            server: self.me,
            slot,
            agreed: self.confirmed.map(|(confirmed, _)| confirmed).filter(|confirmed| *confirmed < slot),
            others: others.collect(),
            outvoted,
        });
    }

    fn peers(&self) -> Vec<NodeId> {
        self.servers.iter().copied().filter(|s| *s != self.me).collect()
    }
}

fn tell(slot: Slot, view: &View, to: impl IntoIterator<Item = NodeId>, asks: bool, out: &mut Output) {
    let message = Message::Digests(Digests { slot, reports: view.reports.clone(), asks });
    out.paxos.now.extend(to.into_iter().map(|peer| (peer, message.clone())));
}

#[cfg(test)]
mod tests;
