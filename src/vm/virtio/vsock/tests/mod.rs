//! The device through the eyes of a guest's driver, and of the host's end of its
//! streams.

mod closing;
mod frozen;
mod guest;
mod hostile;
mod streams;
