//! Clusters of three servers without processes: the production core, log and turn, everything else under the tests' control.

mod damage;
mod digests;
mod failures;
mod world;
