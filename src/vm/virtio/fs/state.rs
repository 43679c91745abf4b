//! What is saved of a share: what was agreed with the guest.

use fuse_backend_rs::api::filesystem::FsOptions;
use serde::{Deserialize, Serialize};

use super::share::Share;
use crate::virtio::device::DeviceError;

/// The session of a share without exports. The guest may hold its top, and
/// nothing counts how often: that is node 1, and never forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsState {
    /// Options agreed on in FUSE_INIT; none before it or after FUSE_DESTROY.
    agreed: Option<u64>,
}

impl Share {
    /// An export is open on files of this process, by ids that only it knows.
    pub fn freeze(&self) -> Result<FsState, &'static str> {
        if !self.exports_from(0).is_empty() {
            return Err("it has exports");
        }
        Ok(FsState {
            agreed: self.session().map(|agreed| agreed.bits()),
        })
    }

    /// Goes on with the session, for the exports that there are now.
    pub fn thaw(&self, state: FsState) -> Result<(), DeviceError> {
        let Some(bits) = state.agreed else {
            return Ok(());
        };
        let saved = FsOptions::from_bits(bits).ok_or(DeviceError::State)?;
        let agreed = self
            .begin_session(saved)
            .map_err(|source| DeviceError::Host {
                what: "starting an export",
                source,
            })?;
        // Or it is of a version that offered what this one does not.
        (agreed == saved).then_some(()).ok_or(DeviceError::State)
    }
}
