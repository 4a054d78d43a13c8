//! The sessions that a shard knows (B3, T7): opened, used, closed, expired.
//!
//! A session of this shard is known from its `open` until it expires, and no other is ever issued under its number. One
//! of another shard becomes known when it is first mentioned, unless its number lies below the *floor* of its issuer:
//! whatever is unknown below a floor has expired. A floor rises with every expiry, and names the older sessions that
//! live, so that these become known first. Nothing needs to be remembered of a session that expired.
//!
//! The issuer lets a session expire last of all shards. So at any moment every shard knows no sessions of an issuer
//! but those that the issuer itself knows, which are no more than [`Limits::sessions`].

use super::*;
use crate::bank::holds::SessionHolds;

impl Bank {
    /// Sessions that this shard issued and that have not expired, with whether they are closed, in order.
    pub fn issued(&self) -> impl Iterator<Item = (Session, bool)> + '_ {
        self.known_of(self.shard).map(|(session, state)| (*session, state.is_closed()))
    }

    /// Sessions that are known here, of all shards.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Whether a session is not known here and never will be.
    pub fn is_expired(&self, session: Session) -> bool {
        let floor = self.floors.get(&session.shard()).copied().unwrap_or(0);
        let issuer = session.shard();
        !self.sessions.contains_key(&session) && (issuer == self.shard || session.number() < floor)
    }

    /// The sessions that are known here.
    pub fn known_sessions(&self) -> impl Iterator<Item = Session> + '_ {
        self.sessions.keys().copied()
    }

    /// Whether this shard, which is its issuer, has ever opened a session.
    pub fn has_opened(&self, session: Session) -> bool {
        session.shard() == self.shard && session.number() < self.next_session
    }

    /// What is remembered of a transaction, `None` if nothing is. Changes nothing, unlike a mention.
    pub fn status(&self, id: TxnId) -> Option<Status> {
        let Some(state) = self.sessions.get(&id.session) else {
            return self.is_expired(id.session).then_some(Status::Expired);
        };
        if id.seq < state.mark() { Some(Status::Finished) } else { state.get(id.seq).status() }
    }

    /// The same, for somebody who asks how it ended: what a closed session has no register of never happens, and what was
    /// not opened yet has not expired.
    pub fn lookup(&self, id: TxnId) -> Option<Status> {
        if id.session.shard() == self.shard && !self.has_opened(id.session) {
            return None;
        }
        let closed = self.sessions.get(&id.session).is_some_and(SessionState::is_closed);
        self.status(id).or(closed.then_some(Status::Closed))
    }

    /// The transfer that a transaction belongs to, if a client has named it and this shard remembers it.
    pub fn name(&self, id: TxnId) -> Option<Transfer> {
        self.sessions.get(&id.session).and_then(|state| state.name(id.seq))
    }

    fn known_of(&self, issuer: ShardId) -> impl Iterator<Item = (&Session, &SessionState)> {
        let last = Session(Session::new(issuer, 0).0 | ((1 << 48) - 1));
        self.sessions.range(Session::new(issuer, 0)..=last)
    }

    /// `None` if there is no room for one more.
    pub(super) fn open(&mut self, naming: bool) -> Option<Session> {
        if self.known_of(self.shard).count() >= self.sessions_max {
            return None;
        }
        let session = Session::new(self.shard, self.next_session);
        self.swap_share(ISSUED, 0, Some(self.next_session), Some(self.next_session + 1));
        self.next_session += 1;
        self.create(session);
        if naming {
            self.state(session).set_naming();
            self.swap_share(NAMING, session.0, None, Some(0));
        }
        Some(session)
    }

    /// `Done` if this shard has opened the session for named transactions and not forgotten it: whoever names one in a
    /// session of another kind, whose marks pass what is in it, may have it forgotten in one shard and not in another.
    pub(super) fn touch(&self, session: Session) -> Status {
        let naming =
            session.shard() == self.shard && self.sessions.get(&session).is_some_and(SessionState::is_naming);
        if naming { Status::Done } else { Status::Expired }
    }

    fn create(&mut self, session: Session) {
        let state = SessionState::new(self.session_window);
        self.swap_share(MARK, session.0, None, Some(state.mark()));
        self.sessions.insert(session, state);
    }

    /// Makes sure that a session exists if it may: one of another shard opens with its first mention, one of this shard
    /// only through `open`, because its number would otherwise be issued twice.
    fn admit(&mut self, session: Session) -> Result<(), Status> {
        if self.sessions.contains_key(&session) {
            return Ok(());
        }
        if self.is_expired(session) {
            return Err(Status::Expired);
        }
        // Only numbers that were never issued come here so often.
        if self.known_of(session.shard()).count() >= self.sessions_max {
            return Err(Status::Busy);
        }
        self.create(session);
        Ok(())
    }

    fn state(&mut self, session: Session) -> &mut SessionState {
        self.sessions.get_mut(&session).expect("B3: the session was admitted first")
    }

    pub(super) fn advance_mark(&mut self, session: Session, mark: u64) -> Status {
        if let Err(status) = self.admit(session) {
            return status;
        }
        let state = self.sessions.get_mut(&session).expect("B3: the session was admitted first");
        let before = state.mark();
        let mut digest = self.digest;
        let stems = Stems::new(session);
        state.advance(mark, |seq, register, name| {
            if register != Register::Empty {
                let id = TxnId { session, seq };
                digest = digest.wrapping_sub(stems.register_share(id, register));
                digest = name.iter().fold(digest, |d, name| d.wrapping_sub(name_share(id, name)));
            }
        });
        let after = state.mark();
        self.digest = digest;
        self.swap_share(MARK, session.0, Some(before), Some(after));
        Status::Done
    }

    /// Takes the state of a session out, for all that a block mentions of it; [`Bank::leave`] puts it back.
    pub(super) fn enter(&mut self, session: Session) -> Result<Entered, Status> {
        self.admit(session)?;
        let state = std::mem::replace(self.state(session), SessionState::new(0));
        Ok(Entered {
            session,
            state,
            held: self.holds.take(session),
            near: 0,
            stems: Stems::new(session),
            hold_stem: stem(HOLD, session.0),
        })
    }

    pub(super) fn leave(&mut self, entered: Entered) {
        *self.state(entered.session) = entered.state;
        self.holds.put(entered.session, entered.held);
    }

    /// Sets a register that is empty, or turns an undecided YES into its outcome; nothing else is ever written (T1).
    #[inline]
    pub(super) fn record(&mut self, entered: &mut Entered, txn: Mention, register: Register) {
        let id = txn.id;
        let before = entered.state.set(id.seq, register);
        match (before, register) {
            (Register::Empty, _) => {
                if let Some(name) = txn.name {
                    entered.state.set_name(id.seq, name);
                    self.digest = self.digest.wrapping_add(name_share(id, &name));
                }
            }
            (Register::Yes, Register::YesCommitted | Register::YesAborted) => {
                self.digest = self.digest.wrapping_sub(entered.stems.register_share(id, before));
            }
            _ => panic!("T1: the register of {id} is {before:?} and would become {register:?}"),
        }
        self.digest = self.digest.wrapping_add(entered.stems.register_share(id, register));
    }

    fn is_in_doubt(&self, session: Session) -> bool {
        self.holds.has(session)
    }

    /// `Done`: nothing of the session is in doubt here, now or ever. `Yes`: something still is.
    pub(super) fn close(&mut self, session: Session) -> Status {
        if let Err(status) = self.admit(session) {
            return status;
        }
        if !self.state(session).is_closed() {
            self.state(session).close();
            self.swap_share(CLOSED, session.0, None, Some(0));
        }
        if self.is_in_doubt(session) { Status::Yes } else { Status::Done }
    }

    /// `Done` if the session is gone, now or earlier; otherwise nothing happens.
    pub(super) fn expire(&mut self, session: Session, live: impl Iterator<Item = u64>) -> Status {
        if self.is_expired(session) {
            return Status::Done;
        }
        let closed = self.sessions.get(&session).is_some_and(SessionState::is_closed);
        if !closed || self.is_in_doubt(session) {
            return if closed { Status::Yes } else { Status::Invalid };
        }
        let issuer = session.shard();
        if issuer != self.shard {
            for number in live {
                // One that expired meanwhile stays so.
                let _ = self.admit(Session::new(issuer, number));
            }
            let before = self.floors.get(&issuer).copied();
            let after = before.unwrap_or(0).max(session.number() + 1);
            self.swap_share(FLOOR, u64::from(issuer.0), before, Some(after));
            self.floors.insert(issuer, after);
        }
        let state = self.sessions.remove(&session).expect("T7: a closed session is known");
        self.swap_share(CLOSED, session.0, Some(0), None);
        self.swap_share(NAMING, session.0, state.is_naming().then_some(0), None);
        self.swap_share(MARK, session.0, Some(state.mark()), None);
        for (seq, register) in state.registers() {
            self.digest = self.digest.wrapping_sub(register_share(TxnId { session, seq }, register));
        }
        for (seq, name) in state.names() {
            self.digest = self.digest.wrapping_sub(name_share(TxnId { session, seq }, &name));
        }
        Status::Done
    }
}

/// A session while a block that mentions it is applied.
pub(super) struct Entered {
    session: Session,
    state: SessionState,
    pub held: SessionHolds,
    /// Where the last hold was that was looked for.
    pub near: usize,
    stems: Stems,
    /// The same of what is held.
    hold_stem: u64,
}

/// What the shares of a session's registers have in common that hold one of [`STEMMED`].
struct Stems([u64; STEMMED.len()]);

/// What by far the most registers hold.
const STEMMED: [Register; 3] = [Register::Committed, Register::Yes, Register::YesCommitted];

impl Stems {
    fn new(session: Session) -> Stems {
        Stems(STEMMED.map(|register| register_stem(session, register)))
    }

    #[inline]
    fn register_share(&self, id: TxnId, register: Register) -> u64 {
        match STEMMED.iter().position(|stemmed| *stemmed == register) {
            Some(i) => share_of(self.0[i], id.seq),
            None => register_share(id, register),
        }
    }
}

impl Entered {
    #[inline]
    pub fn hold_share(&self, seq: u64, hold: &Hold) -> u64 {
        hold_share_of(self.hold_stem, seq, hold)
    }
}

/// The answer to a mention that may set a register, if it is not up to this mention to set it.
#[inline]
pub(super) fn recorded(entered: &Entered, txn: Mention, within_window: bool) -> Option<Status> {
    let (id, state) = (txn.id, &entered.state);
    if id.seq < state.mark() {
        return Some(Status::Finished);
    }
    let register = state.get(id.seq).status();
    if register.is_some() && state.name(id.seq) != txn.name {
        return Some(Status::Aborted(Reason::IdReused));
    }
    if state.is_closed() {
        return register.or(Some(Status::Closed));
    }
    let fits = state.in_window(id.seq) && (txn.name.is_none() || state.in_named_window(id.seq));
    if within_window && !fits {
        return Some(Status::Busy);
    }
    register.or_else(|| (!state.has_room(id.seq)).then_some(Status::Busy))
}
