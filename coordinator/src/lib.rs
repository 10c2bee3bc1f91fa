//! The coordinator: membership, generations, commits.
//!
//! [`core`] decides, purely; everything else is its shell. The driver feeds it events and does
//! what it says, `service` speaks gRPC, `journal` and `manifest` write the run's location,
//! `store` holds the collective groups' keys, `connections` and `security` let in whom they may.

mod connections;
pub mod core;
mod driver;
mod error;
mod journal;
mod keeper;
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

pub use driver::{Outcome, Signal};
pub use error::{Error, Result};
pub use server::{Options, Server};
