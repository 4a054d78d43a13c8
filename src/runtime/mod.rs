//! Real servers and clients: threads, sockets, files and clocks around the pure core.
//!
//! Each server is one OS thread with its own mio event loop, listener, data directory and log ([`node`]); they share
//! nothing and talk over TCP only, so the same code runs as nine threads ([`cluster`]) or as nine processes. The
//! coordinator is one more such thread ([`client`]). [`runner`] runs set files on either, [`session`] is the loop
//! around it with tables and prompt. [`http`] shows one server to whoever watches over it.
//!
//! Deliberately absent: protocol decisions. What a message means is decided in [`crate::shard`] and [`crate::txn`].

pub mod admin;
pub mod backup;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod config_file;
pub mod conns;
pub mod cores;
pub mod doorman;
pub mod gates;
pub mod gateway;
pub mod http;
pub mod inspect;
pub mod local;
pub mod logs;
pub mod node;
pub mod order;
pub mod outlet;
pub mod overview;
pub mod runner;
pub mod session;
pub mod status;
pub mod teller;
pub mod turn;
