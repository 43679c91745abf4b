//! The guest's time stamp counter.

#![allow(unsafe_code)]

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use std::os::fd::AsRawFd;

/// What is added to the host's counter for the guest's; none where KVM does not
/// tell, or where it scales. The guest may not change it later unnoticed: Linux
/// does not write the counter.
pub(super) fn offset(vcpu: &VcpuFd) -> Option<u64> {
    let mut offset = 0u64;
    let attribute = kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: &raw mut offset as u64,
    };
    // _IOW(KVMIO, 0xe2, struct kvm_device_attr)
    const KVM_GET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee2;
    // SAFETY: the attribute is 8 bytes, written to `offset`, which outlives the call.
    let got = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_DEVICE_ATTR, &attribute) };
    (got == 0).then_some(offset)
}

/// The host's counter.
pub(super) fn now() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and ours is not forbidden to user code.
    unsafe { std::arch::x86_64::_rdtsc() }
}
