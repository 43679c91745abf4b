//! The guest's /init. Std's own start-up is left out: it would take signals and
//! an alternate stack that PID 1 does not use.
#![no_main]
#![allow(unsafe_code)]

use std::error::Error;

use rustix::system::{RebootCommand, reboot};
use vmrun_agent::container::Guest;
use vmrun_agent::{boot, serve, sys};

/// Entered by the C library.
// SAFETY: no other function of this name is linked in.
#[unsafe(no_mangle)]
pub extern "C" fn main() -> i32 {
    // PID 1 that panics aborts, which panics the kernel, which reboots.
    std::panic::set_hook(Box::new(|panic| sys::log_line(&panic.to_string())));
    match run() {
        Ok(()) => rustix::fs::sync(),
        Err(error) => sys::log_line(&chain(&*error)),
    }
    // Without ACPI a power-off only halts; the VMM ends with a reboot.
    let _ = reboot(RebootCommand::Restart);
    1
}

fn run() -> Result<(), Box<dyn Error>> {
    let (channels, prepared) = boot::boot()?;
    let guest = Guest {
        cgroups: true,
        machine_is_ours: true,
        network_unused: true,
    };
    serve::serve(channels, guest, prepared)?;
    Ok(())
}

/// An error and its causes on one line.
fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
