//! What a run has met: every kind of fault, counted where it hurts and not where it is thrown, and every rare path of the
//! protocol. A suite of runs that never met one of them has a hole, and says which.
//!
//! Two paths are missing on purpose, because healthy disks and our own coordinators never lead there: a new leader that
//! finds no vote for a slot below another one (votes have no gaps), and an abort outcome that finds no register (it is
//! sent after every register is known). Unit tests of `paxos` and `bank` go there.

use serde::{Deserialize, Serialize};

macro_rules! sights {
    ($($name:ident $text:literal,)*) => {
        /// Something that a suite of runs must have met.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Seen { $($name,)* }

        impl Seen {
            pub const ALL: &[Seen] = &[$(Seen::$name,)*];

            pub fn text(self) -> &'static str {
                match self { $(Seen::$name => $text,)* }
            }
        }
    };
}

sights! {
    // Faults of the network.
    FrameLost "a frame was lost",
    FrameTwice "a frame arrived twice",
    FrameOvertaken "a frame overtook another of its link",
    FrameSlow "a frame took longer than a second",
    FrameFromThePast "a frame was delivered again more than a second later",
    RequestFromThePast "a request was delivered more than a second late, as by a server that stood still",
    FrameBroken "a connection broke half-way through a frame",
    SlowNetwork "a server behind a slow network was sent something",
    SlowWayBack "an answer took the slow way back to its server",
    CutHalves "a partition into halves swallowed a frame",
    CutIsolated "the isolation of one place swallowed a frame",
    CutBridge "a partition with one bridge swallowed a frame",
    CutRing "a ring in which only neighbours speak swallowed a frame",
    CutOneWay "a one-way cut swallowed a frame",
    CutLink "the cut of a single link swallowed a frame",
    CutSilent "a server that still heard others could not be heard",
    CutFlapping "a link that comes and goes swallowed a frame",
    // Faults of servers and their disks.
    Crashed "a running server crashed",
    PowerLost "a power cut took unsynced bytes",
    PowerTore "a power cut kept a part of an unsynced write",
    PowerToreLines "a power cut kept some lines of an unsynced write to the log",
    PowerSpared "a power cut kept an unsynced write whole",
    DiedBeforeSync "a server died between appending and syncing",
    DiedBeforeRelease "a server died between syncing and answering",
    DiedOverwriting "a server lost its power while it wrote over votes",
    DiedInRecovery "a server died while it started",
    WriteFailed "a failed write stopped a server",
    SyncFailed "a failed sync stopped a server",
    NewWorkRefused "a leader without space refused new work",
    NotAccepted "a follower without space left a proposal unaccepted",
    HandedOver "a leader without space left the lead to servers that have some",
    SpaceBack "a server that had run out of space got some, and went on",
    TornTailCut "a restart cut a torn tail",
    Restarted "a server restarted with votes above its decided slot",
    Stalled "a server found frames waiting after standing still",
    SlowDisk "a server with a slow disk synced",
    ClockSkewed "a server acted on a clock that runs wrongly",
    ClockJumped "a server acted after its clock jumped ahead",
    ClockStrobed "a server acted after its clock went back",
    CutOffAndBack "a server was cut off and came back",
    DiskWiped "a server refused to start from a wiped disk (S3)",
    DiskDamaged "a server refused to start from damaged files (S3)",
    LogDamaged "a server started from a damaged log (S2)",
    VotesLost "a server started that had lost votes, or decided values (S2)",
    FoundBit "a server found a flipped bit (S2)",
    FoundNoise "a server found bytes that it never wrote (S2)",
    FoundSector "a server found that a sector cannot be read (S2)",
    FoundCut "a server found a file cut short (S2)",
    FoundGone "a server found a file gone (S2)",
    FoundLostWrite "a server found that a write never reached the disk (S2)",
    FoundLostOverwrite "a server found that what it had written over its votes never reached the disk (S2)",
    FoundMisdirected "a server found a write in another place than its own (S2)",
    FoundAfterPower "a server whose power had gone found a segment gone or cut short (S1, S2)",
    FoundRunning "a server found damage while it ran (S2)",
    Rewritten "a server had a damaged value from others and wrote it again (S2)",
    RenewedBallot "a leader began a new ballot since another server had forgotten votes (S2)",
    RetiredByAge "log went because of its age",
    Helix "all servers of a cluster started with damaged logs, and most of them had lost something (S2)",
    Healed "a server whose log was damaged knew all its votes again (S2)",
    Salvaged "a server took from its own log what stood behind damage (S2)",
    LearnerAsked "a server whose new disk was not let in yet was asked for a vote (S3)",
    OldDiskUnheard "what a lost disk had vouched for came after its server was let in with another (S3)",
    OldPromiseLate "a candidate had the promise of a lost disk in its hands when it learned of the new one (S3)",
    Rejoined "a server whose disk was replaced was let in again and voted (S3)",
    Misled "a server started with a wrong state",
    // Snapshots.
    SnapshotTaken "a server finished a snapshot of its own state",
    SegmentRetired "a snapshot let a segment of the log go",
    DiedWritingSnapshot "a server died with a snapshot in the making",
    StartedFromSnapshot "a server started from a snapshot",
    SnapshotDamaged "a server started from an older snapshot, the newest being damaged (S2)",
    SnapshotInstalled "a server that lagged went on from the snapshot of another",
    SnapshotMoved "the transfer of a snapshot went on at another server",
    HistoryWritten "a server's log said which transactions committed",
    ListedInPart "a server no longer knew all of its history",
    // Coordinators.
    DiedUnopened "a coordinator died before it had a session",
    DiedUnsent "a coordinator died with a transaction it had not sent",
    DiedUnvoted "a coordinator died before any vote was decided",
    DiedBetweenVotes "a coordinator died with one vote decided and one open",
    DiedUndecided "a coordinator died with every vote decided and no outcome applied",
    DiedBetweenOutcomes "a coordinator died with the outcome applied on one side",
    Zombie "a coordinator woke up after others had finished its transaction",
    NewSession "a coordinator came back with a new session",
    // Paxos.
    PreVoteRefused "a pre-vote was refused",
    PreparedAgain "a campaign was refused for a higher ballot",
    DeposedInFlight "a leader was deposed with proposals in flight",
    CheckQuorum "a leader stepped down because it heard no majority",
    Resigned "a leader that was told to stop left the lead to another server",
    TooSlow "a leader that was too slow left the lead to another server",
    Succeeded "a server campaigned at once because its leader left",
    OldTail "a new leader proposed an old ballot's tail again",
    CaughtUp "a candidate fetched what others knew as decided",
    Resent "a leader sent again what was lost",
    ReadFromDisk "entries for a follower were read from disk",
    StaleBallot "a message of an old ballot was refused",
    LeaderBusy "a leader with a full queue sent a request away",
    // Digests (P4).
    DigestConfirmed "a majority reported the same digest",
    DigestsDiffer "a server heard of another digest than its own, and had to wait",
    Outvoted "a server with a wrong state stopped, outvoted by a majority",
    StoppedInDispute "a server stopped because no majority told who is right",
    // Transactions.
    FenceFirst "a fence beat the prepare",
    FenceAfterYes "a fence found a YES and left it",
    RetryRecorded "a repetition was decided and answered from the record",
    RecoveryCommits "a recovery learned that a transaction commits",
    RecoveryAborts "a recovery learned that a transaction aborts",
    RecoveryDropped "a recovery found the work done",
    TwoRecoverers "two servers recovered one transaction at once",
    UnknownResolved "an unknown outcome was resolved later",
    NoQuorum "a transaction aborted for lack of quorum",
    StorageFull "a transaction aborted for lack of space",
    LockContention "a transaction aborted on a lock",
    InsufficientBalance "a transaction aborted on an insufficient balance",
    ReadWaited "a read waited for an in-doubt lock",
    ReadGaveUp "a read gave up on a lock",
    BeyondWindow "a shard answered that a sequence lies beyond its window",
    SessionRenewed "a coordinator left a session whose window was stuck",
    Finished "a shard answered that it has forgotten",
    // The end of sessions.
    SessionClosed "a session was closed",
    SessionExpired "a session expired",
    ExpiryWaits "an expiry was put off because of an undecided YES",
    ClosedRefused "a transaction came after its session was closed, and was refused",
    AfterExpiry "a transaction was mentioned after its session had expired",
    ClosedToldLive "a living client heard that its session is closed",
    ExpiredToldLive "a living client heard that its session has expired",
    Renamed "a transaction got another name in a new session",
    NamedAgain "what a client had named was asked for again",
    IdReused "a client gave one id to two transfers, and a shard refused the second",
    NotForNames "a client named a transfer in a coordinator's own session, and the shard refused it",
    LookedUp "a client asked what became of an id, and it was known",
    LookedUpInDoubt "a client asked what became of an id, and it was in doubt",
    Forgotten "a client asked about a transaction that every shard had forgotten",
    NoSession "a client was told that there is no room for its session",
    NoRoom "an open found no room for one more session",
}

const COUNT: usize = Seen::ALL.len();

/// How often each sight was met.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Vec<u64>", into = "Vec<u64>")]
pub struct Coverage([u64; COUNT]);

impl Default for Coverage {
    fn default() -> Self {
        Coverage([0; COUNT])
    }
}

impl Coverage {
    pub fn see(&mut self, sight: Seen) {
        self.0[sight as usize] += 1;
    }

    pub fn see_if(&mut self, condition: bool, sight: Seen) {
        self.0[sight as usize] += u64::from(condition);
    }

    pub fn count(&self, sight: Seen) -> u64 {
        self.0[sight as usize]
    }

    pub fn merge(&mut self, other: &Coverage) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine += theirs;
        }
    }

    /// What was never met.
    pub fn missing(&self) -> Vec<Seen> {
        Seen::ALL.iter().copied().filter(|s| self.count(*s) == 0).collect()
    }

    /// What was met, a line each, with how often.
    pub fn seen(&self) -> String {
        let met = Seen::ALL.iter().filter(|sight| self.count(**sight) > 0);
        met.map(|sight| format!("{:>10}  {}\n", self.count(*sight), sight.text())).collect()
    }
}

impl From<Coverage> for Vec<u64> {
    fn from(coverage: Coverage) -> Vec<u64> {
        coverage.0.to_vec()
    }
}

impl TryFrom<Vec<u64>> for Coverage {
    type Error = String;

    fn try_from(counts: Vec<u64>) -> Result<Coverage, String> {
        let counts = counts.try_into().map_err(|counts: Vec<u64>| {
            format!("{} sights are counted, this simulator knows {COUNT}", counts.len())
        })?;
        Ok(Coverage(counts))
    }
}
