//! At the end every server lists its committed transactions from its disk, and no list may say anything else than what was
//! decided (B3).

use crate::audit::{Listing, Replay};
use crate::sim::coverage::Seen;
use crate::sim::server::Running;
use crate::sim::world::World;
use crate::storage::StorageError;

impl World {
    /// Reads the log of every server that is up.
    pub fn check_listings(&mut self) {
        for server in self.servers.values().filter(|server| server.is_up()) {
            let Some(Running { shard, wal }) = &server.running else { continue };
            let applied = shard.bank().applied();
            let mut replay = Replay::new(wal, applied);
            let mut listing = Listing::default();
            let listing = loop {
                match replay.advance(wal, shard) {
                    Ok((part, last)) => {
                        listing.append(part);
                        if last {
                            break Some(std::mem::take(&mut listing));
                        }
                    }
                    // What is left of a damaged log may contradict itself.
                    Err(StorageError::Damaged { .. }) if server.flipped => break None,
                    Err(e) => panic!("B3: {} cannot read its own log: {e}", server.id),
                }
            };
            let Some(listing) = listing else { continue };
            let missing = |slot| listing.gaps.iter().any(|(from, to)| (*from..=*to).contains(&slot));
            let all = self.checker.committed_in(shard.shard()).iter();
            let expected: Vec<_> = all.filter(|c| c.slot <= applied && !missing(c.slot)).copied().collect();
            let longest = listing.committed.len().max(expected.len());
            let pairs = (0..longest).map(|n| (listing.committed.get(n), expected.get(n)));
            for (listed, expected) in pairs {
                assert_eq!(listed, expected, "B3: what {} lists", server.id);
            }
            // Log that is retired is the oldest. Anything else must have been skipped with another server's snapshot.
            let retired = |from: u64| from == 1 && wal.oldest_segment() > 1;
            // Or lost.
            let excused = server.was_sent_snapshot || server.flipped;
            let hole = listing.gaps.iter().find(|(from, _)| !retired(from.0) && !excused);
            assert_eq!(hole, None, "B3: {} does not know what committed there", server.id);
            self.coverage.see_if(!listing.gaps.is_empty(), Seen::ListedInPart);
            let written = shard.unwritten_history().next().is_none_or(|run| run.from.0 > 1);
            self.coverage.see_if(written && !expected.is_empty(), Seen::HistoryWritten);
        }
    }
}
