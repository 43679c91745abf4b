//! What makes this machine different from every other one of its template:
//! fresh randomness and the time of day, both from the host.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::null;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, Result};
use rustix::time::{ClockId, Timespec, clock_settime};
use vmrun_protocol::message::{Renewal, Seed};

use crate::sys::check;

/// `RNDADDENTROPY` and `RNDRESEEDCRNG` of linux/random.h, as bytes of a number.
const ADD_ENTROPY: libc::c_ulong = 0x4008_5203;
const RESEED: libc::c_ulong = 0x5207;

/// The kernel's generator of random numbers.
pub struct Generator(OwnedFd);

impl Generator {
    /// Opens it by the node that the initramfs has.
    pub fn open() -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY;
        open("/dev/urandom", flags, Mode::empty()).map(Self)
    }

    /// Puts the seed into the kernel's pool, and makes it draw new keys from there
    /// at once: it would do so by itself only within minutes.
    fn reseed(&self, seed: &Seed) -> Result<()> {
        add_entropy(&self.0, seed)?;
        // SAFETY: the request takes no argument.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), RESEED as _, null::<u8>()) }.into())?;
        Ok(())
    }
}

/// Applies `renewal`, whose seed is wiped. Nothing of a container may run before
/// this has succeeded.
pub fn apply(
    generator: &Generator,
    renewal: Renewal,
) -> std::result::Result<(), (&'static str, Errno)> {
    let reseeded = generator.reseed(&renewal.seed);
    reseeded.map_err(|errno| ("renew the kernel's randomness", errno))?;
    set_clock(renewal.realtime_ns).map_err(|errno| ("set the clock", errno))
}

/// `struct rand_pool_info` of linux/random.h with a seed in it.
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    bytes: i32,
    seed: [u8; Seed::BYTES],
}

fn add_entropy(generator: &OwnedFd, seed: &Seed) -> Result<()> {
    let mut info = PoolInfo {
        entropy_bits: (Seed::BYTES * 8) as i32,
        bytes: Seed::BYTES as i32,
        seed: [0; Seed::BYTES],
    };
    info.seed.copy_from_slice(seed.bytes());
    // SAFETY: RNDADDENTROPY reads a `rand_pool_info` of the length it says, which
    // lives through the call.
    let done = unsafe { libc::ioctl(generator.as_raw_fd(), ADD_ENTROPY as _, &raw const info) };
    let done = check(done.into());
    zeroize::Zeroize::zeroize(&mut info.seed);
    done.map(drop)
}

fn set_clock(realtime_ns: u64) -> Result<()> {
    const NS_PER_S: u64 = 1_000_000_000;
    let now = Timespec {
        tv_sec: (realtime_ns / NS_PER_S) as i64,
        tv_nsec: (realtime_ns % NS_PER_S) as i64,
    };
    clock_settime(ClockId::Realtime, now)
}
