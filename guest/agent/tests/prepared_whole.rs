//! The promises of `whole.rs`, kept with a first process that was made ahead.

#[path = "whole.rs"]
mod whole;
