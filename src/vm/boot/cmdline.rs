//! The kernel command line.

use linux_loader::cmdline::Cmdline;
use vm_memory::GuestAddress;

use crate::memory::layout::{CMDLINE_MAX_BYTES, MMIO_WINDOW};

/// Why a command line cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum CmdlineError {
    /// Too long, or a character that is not printable ASCII.
    #[error("{parameter:?}")]
    Parameter {
        /// The parameter at which it failed.
        parameter: String,
        /// Why.
        source: linux_loader::cmdline::Error,
    },
}

/// A virtio-mmio window as the kernel is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioDevice {
    /// Start of the window.
    pub base: u64,
    /// Interrupt line.
    pub gsi: u32,
}

/// Joins `params` and one `virtio_mmio.device=` per device, in order.
pub fn build<'a>(
    params: impl IntoIterator<Item = &'a str>,
    devices: &[MmioDevice],
) -> Result<String, CmdlineError> {
    let fail = |parameter: &str, source| CmdlineError::Parameter {
        parameter: parameter.to_owned(),
        source,
    };
    let mut cmdline = Cmdline::new(CMDLINE_MAX_BYTES).map_err(|e| fail("", e))?;
    for param in params {
        cmdline.insert_str(param).map_err(|e| fail(param, e))?;
    }
    for device in devices {
        cmdline
            .add_virtio_mmio_device(MMIO_WINDOW, GuestAddress(device.base), device.gsi, None)
            .map_err(|e| fail("virtio_mmio.device", e))?;
    }
    let text = cmdline.as_cstring().map_err(|e| fail("", e))?;
    Ok(text.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_come_behind_parameters() {
        let devices = [MmioDevice {
            base: 0xd000_0000,
            gsi: 5,
        }];
        assert_eq!(
            build(["reboot=k", "quiet"], &devices).unwrap(),
            "reboot=k quiet virtio_mmio.device=4K@0xd0000000:5"
        );
    }

    #[test]
    fn bad_parameters_are_named() {
        let error = build(["a\nb"], &[]).unwrap_err();
        assert_eq!(error.to_string(), r#""a\nb""#);
        let long = "x".repeat(CMDLINE_MAX_BYTES);
        assert!(build([long.as_str()], &[]).is_err());
    }
}
