//! The training side: joins a job, trains data-parallel, checkpoints, evaluates, predicts.
//!
//! [`trainer::run`] is the main line; everything else here serves it.

pub mod batch;
pub mod checkpoint;
pub mod device;
pub mod dry_run;
pub mod ema;
pub mod error;
pub mod evaluate;
pub mod feed;
pub mod loss;
pub mod metrics;
pub mod mix;
pub mod models;
pub mod optim;
pub mod parity;
pub mod predict;
pub mod ranking;
pub mod report;
pub mod restore;
pub mod scaler;
pub mod schedule;
pub mod session;
pub mod state;
pub mod store_client;
pub mod supervise;
pub mod trainer;
pub mod twin;
pub mod weights;

pub use error::{Error, Result};
