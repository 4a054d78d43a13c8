//! Recovery (T4): what this server does, while it leads, about transactions that stay in doubt. The coordinator that
//! finishes them is the one that clients use.

use crate::bank::command::Range;
use crate::shard::{Event, MYSELF, Output, Shard};
use crate::txn;
use crate::types::Time;

impl Shard {
    /// Watches transactions that were prepared together. If that was one, its time is its own; others get theirs if they
    /// are not decided in time.
    pub(super) fn watch(&mut self, now: Time, range: Range) {
        let timeout = self.timeouts.in_doubt();
        match range.count {
            1 => self.arm(now + timeout, range),
            _ => self.doubts.add(range, now + timeout),
        }
    }

    fn arm(&mut self, from: Time, range: Range) {
        // Jitter keeps the participants' leaders apart; two recoverers at once are safe, but a waste.
        self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(range.first | 1);
        let share = (self.random >> 40) as f64 / (1u64 << 24) as f64;
        self.doubts.add(range, from + self.timeouts.in_doubt().mul_f64(share));
    }

    pub(super) fn recover_doubts(&mut self, now: Time, out: &mut Output) {
        for range in self.doubts.due(now) {
            let one = |seq| Range { first: seq, count: 1, ..range };
            if range.count > 1 {
                let held = |seq: &u64| self.bank.holds().get(&range.id(*seq)).is_some();
                let held: Vec<u64> = range.seqs().filter(held).collect();
                held.into_iter().for_each(|seq| self.arm(now, one(seq)));
                continue;
            }
            let id = range.id(range.first);
            let hold = self.bank.holds().get(&id).expect("T5: only undecided transactions are in doubt");
            let (participants, name) = (hold.participants, hold.named.then_some(hold.transfer));
            out.events.push(Event::Recovering { id });
            self.watch(now, range);
            let home = self.shard;
            self.recovery_step(now, txn::Input::Recover { id, name, participants, home }, out);
        }
    }

    /// Begins the expiry of sessions that nobody uses (T7).
    pub(super) fn retire_sessions(&mut self, now: Time, out: &mut Output) {
        for (session, live) in self.idle.due(now, self.timeouts.session_idle(), &self.limits, &self.bank) {
            self.recovery_step(now, txn::Input::Retire { session, live }, out);
        }
    }

    pub(super) fn recovery_step(&mut self, now: Time, input: txn::Input, out: &mut Output) {
        let mut asked = txn::Output::default();
        self.recoverer.step(now, input, &mut asked);
        out.events.extend(asked.events.into_iter().map(Event::Recovery));
        out.connect.extend(asked.connect);
        for (to, request) in asked.send {
            if to == self.me {
                self.request(now, MYSELF, request, out);
            } else {
                out.remote.push((to, request));
            }
        }
        // What this server refused itself came out as a reply to a client that does not exist.
        let own: Vec<_> = out.replies.extract_if(.., |(client, _)| *client == MYSELF).collect();
        for (client, response) in own {
            self.reply(now, client, response, out);
        }
    }
}
