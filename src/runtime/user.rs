//! Who runs this process.

use std::sync::OnceLock;

/// The effective user id, asked for once: it never changes, and each call counts on
/// the way to the guest's first instruction.
pub fn own_uid() -> u32 {
    static OWN: OnceLock<u32> = OnceLock::new();
    *OWN.get_or_init(|| rustix::process::geteuid().as_raw())
}
