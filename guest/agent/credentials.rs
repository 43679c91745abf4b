//! User, groups and capabilities of the process that is about to run the
//! container's program.

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_keep_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};
use vmrun_protocol::message::Failure;
use vmrun_protocol::plan::Capabilities;

use crate::failure::Named;
use crate::users::Ids;

fn single(number: u32) -> CapabilitySet {
    CapabilitySet::from_bits_retain(1 << number)
}

/// Drops every capability but those of `kept` from the bounding set, in which
/// those of `present` are at most. Which is the last one the kernel itself tells,
/// by EINVAL: /proc is the container's.
pub fn bound(kept: u64, present: u64) -> Result<(), Failure> {
    let dropped = present & !kept;
    for number in (0..u64::BITS).filter(|n| dropped & (1 << n) != 0) {
        match remove_capability_from_bounding_set(single(number)) {
            Err(Errno::INVAL) => break,
            dropped => dropped.named(|| "capabilities.bounding")?,
        }
    }
    Ok(())
}

/// Leaves all additional groups.
pub fn leave_groups() -> Result<(), Failure> {
    set_groups(&[])
}

fn set_groups(groups: &[Gid]) -> Result<(), Failure> {
    set_thread_groups(groups).named(|| "additional groups")
}

/// Becomes the user namespace's own root, which may be another user outside. The
/// capabilities stay. A process whose ids change is no longer dumpable.
pub fn become_root() -> Result<(), Failure> {
    let what = || "root of the user namespace";
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    set_thread_res_gid(gid, gid, gid).named(what)?;
    set_thread_res_uid(uid, uid, uid).named(what)
}

/// Takes on the ids, from root's without additional groups. The permitted
/// capabilities stay, to be set after.
pub fn become_user(ids: &Ids) -> Result<(), Failure> {
    if !ids.groups.is_empty() {
        let groups: Vec<_> = ids.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        set_groups(&groups)?;
    }
    if ids.gid != 0 {
        let gid = Gid::from_raw(ids.gid);
        set_thread_res_gid(gid, gid, gid).named(|| format!("group {}", ids.gid))?;
    }
    if ids.uid != 0 {
        set_keep_capabilities(true).named(|| "keep capabilities")?;
        let uid = Uid::from_raw(ids.uid);
        set_thread_res_uid(uid, uid, uid).named(|| format!("user {}", ids.uid))?;
    }
    Ok(())
}

/// Sets all capability sets but the bounding one.
pub fn set_capabilities(sets: &Capabilities) -> Result<(), Failure> {
    let wanted = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(sets.effective),
        permitted: CapabilitySet::from_bits_retain(sets.permitted),
        inheritable: CapabilitySet::from_bits_retain(sets.inheritable),
    };
    rustix::thread::set_capabilities(None, wanted).named(|| "capabilities")?;
    for number in (0..u64::BITS).filter(|n| sets.ambient & (1 << n) != 0) {
        configure_capability_in_ambient_set(single(number), true)
            .named(|| format!("capabilities.ambient: {number}"))?;
    }
    Ok(())
}
