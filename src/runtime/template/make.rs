//! Makes a template: a machine without anything of a container boots, its agent
//! gets ready, and it is frozen.

use std::os::unix::net::UnixStream;

use vmrun_vm::trace::Timeline;

use super::about::About;
use super::key::Inputs;
use super::lock::Draft;
use super::{Unavailable, Workshop};
use crate::Error;
use crate::control::Control;
use crate::guest_image::GuestImage;
use crate::machine::{self, HostKind};
use crate::plan::Shape;
use crate::session::{Deadlines, Session};

/// Makes the template of `inputs` in `draft`.
pub fn make(
    workshop: &Workshop,
    inputs: &Inputs,
    image: &GuestImage,
    host: HostKind,
    draft: &Draft,
) -> Result<(), Unavailable> {
    let shape = Shape {
        mem_size_mib: inputs.mem_size_mib,
        vcpu_count: inputs.vcpu_count,
    };
    let (control, agent_end) = UnixStream::pair().map_err(Error::host("make a socket"))?;
    let spec = machine::spec(shape, image.clone(), Vec::new(), agent_end)?;
    let machine = machine::boot(spec, host, &Timeline::disabled())?;
    let control = Control::new(control).map_err(Error::host("make a socket"))?;
    let session = Session::new(
        control,
        &machine,
        workshop.signals,
        Deadlines::of(host),
        || None,
    );
    // Open until the machine stands still: the agent would see it end.
    let control = session.freeze()?;
    machine
        .freeze(draft.folder())
        .map_err(Unavailable::Freeze)?;
    drop(control);
    About::now(inputs.clone())
        .write(draft.folder())
        .map_err(Unavailable::About)
}
