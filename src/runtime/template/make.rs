//! Makes a template: a machine without anything of a container boots, its agent
//! gets ready, and it is frozen.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use vmrun_vm::trace::Timeline;

use super::about::About;
use super::key::Inputs;
use super::{Unavailable, Wanted, Workshop};
use crate::Error;
use crate::control::Control;
use crate::machine;
use crate::session::{Deadlines, Session};

/// Makes the template of `inputs` in `draft`.
pub fn make(
    workshop: Workshop,
    inputs: &Inputs,
    wanted: Wanted,
    draft: BorrowedFd,
) -> Result<(), Unavailable> {
    let (control, agent_end) = UnixStream::pair().map_err(Error::host("make a socket"))?;
    let spec = machine::spec(wanted.shape, wanted.image.clone(), Vec::new(), agent_end)?;
    let machine = machine::boot(spec, wanted.host, &Timeline::disabled())?;
    let control = Control::new(control).map_err(Error::host("make a socket"))?;
    let session = Session::new(
        control,
        &machine,
        workshop.signals,
        Deadlines::of(wanted.host, wanted.shape.mem_size_mib),
    );
    // Open until the machine stands still: the agent would see it end.
    let control = session.freeze()?;
    machine.freeze(draft).map_err(Unavailable::Freeze)?;
    drop(control);
    let inputs = inputs.clone().with_whole_paths();
    inputs
        .and_then(|inputs| About::now(inputs).write(draft))
        .map_err(Unavailable::About)
}
