//! The coordinator: membership, generations, commits.
//!
//! [`core`] decides, purely; everything else is its shell. The driver feeds it events and does
//! what it says, `service` speaks gRPC, `journal` and `manifest` write the run's location,
//! `store` holds the collective groups' keys, `door` and `security` let in whom they may.

pub mod core;
mod door;
mod driver;
mod error;
mod journal;
mod manifest;
mod metrics;
mod run;
mod security;
mod server;
mod service;
mod store;
mod watch;
mod wire;

#[cfg(test)]
mod testing;

pub use driver::Outcome;
pub use error::{Error, Result};
pub use server::{Options, Server};
