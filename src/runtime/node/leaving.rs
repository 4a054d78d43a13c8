//! How a server ends that is told to stop: nobody is to notice but who was connected to it.
//!
//! It takes no more connections, leaves the lead to another server of its cluster if it has it, finishes what its gateway
//! has under way, and closes the connections of clients when their replies have left. All of that has a limit, and a second
//! order to stop is obeyed at once.

use std::time::Duration;

use crate::runtime::conns::Item;
use crate::runtime::node::Node;
use crate::shard::Input;
use crate::storage::Disk;
use crate::types::Time;

/// How long it waits for clients, all in all.
const GRACE: Duration = Duration::from_secs(5);
/// How long it waits for another leader, in election time-outs: one may have to be elected without its help.
const HANDOVER: u32 = 3;

pub(super) struct Leaving {
    by: Time,
    handover_by: Time,
    /// Its clients are being closed.
    closing: bool,
}

impl<D: Disk> Node<D> {
    pub(super) fn begin_to_leave(&mut self, now: Time, inputs: &mut Vec<Input>) {
        if self.leaving.is_some() {
            return;
        }
        log::info!("{} is told to stop", self.me);
        self.gates.close();
        inputs.push(Input::Leave);
        let handover_by = now + self.conns.context.timeouts.election() * HANDOVER;
        self.leaving = Some(Leaving { by: now + GRACE, handover_by, closing: false });
    }

    /// Whether everything that it may wait for has happened.
    pub(super) fn may_stop(&mut self, now: Time, received: &mut Vec<Item>) -> bool {
        let Some(leaving) = &mut self.leaving else { return false };
        if self.failed || now >= leaving.by {
            return true;
        }
        if !self.shard.has_left(now) && now < leaving.handover_by {
            return false;
        }
        if !std::mem::replace(&mut leaving.closing, true) {
            self.gateway.dismiss();
        }
        self.conns.flush(received);
        !self.gateway.has_guests() && self.conns.nobody_leaves()
    }
}
