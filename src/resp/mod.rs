//! The protocol that Redis clients speak, so that their command line, benchmark and libraries can use the bank.
//!
//! RESP (Redis serialization protocol, <https://redis.io/docs/latest/develop/reference/protocol-spec/>) comes in two
//! versions. A connection begins with RESP2; `HELLO 3` changes what replies look like, not what requests do.
//!
//! * [`codec`]: bytes → arguments of one request, and [`Reply`] → bytes.
//! * [`command`]: arguments → [`Command`], or the error reply that says what is wrong with them.
//! * [`outcome`]: replies that tell what became of a request. The first word of an error, in capitals, is for programs.
//!
//! A driver keeps the bytes it received and what was last agreed with `HELLO`. It decodes until nothing whole is left,
//! answers in the order of the requests, and closes the connection after a [`ProtocolError`]. Nothing that a client sends
//! makes this module panic or hold more than [`codec::MAX_REQUEST_BYTES`].
//!
//! Deliberately absent: sockets, and any judgement of a transfer. Amount 0 and accounts that do not exist are the bank's
//! affair; here a request is wrong only in its form. Left out of RESP: what servers push, attributes, and quoting in inline
//! commands.

pub mod codec;
pub mod command;
pub mod outcome;

pub use codec::{Args, Protocol, ProtocolError, Reply, decode};
pub use command::{Client, Command, parse};

#[cfg(test)]
mod tests;
