//! Any bytes at all: no panic, no access but through the interface, and what
//! is left has no effect. And sequences, against the CPU.

use proptest::prelude::*;

use super::super::flags::{AF, ARITHMETIC, TF};
use super::super::{CodeCache, State, Stop, run};
use super::Numbers;
use super::guest::{CODE, DATA, Guest, STACK};
use super::native::{Native, Registers};

fn register() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0..8192u64).prop_map(|offset| DATA + offset),
        (0..4096u64).prop_map(|offset| CODE + offset),
        0..100u64,
        Just(u64::MAX),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_bytes_are_safe(
        code in prop::collection::vec(any::<u8>(), 1..64),
        at in prop_oneof![Just(0u64), 4050..4096u64],
        registers in prop::array::uniform16(register()),
        rflags in prop_oneof![any::<u64>(), (0..1u64 << 16).prop_map(|flags| flags & !TF)],
    ) {
        let mut guest = Guest::new(&[]);
        guest.code_everywhere = true;
        guest.put(CODE + at, &code);
        guest.state = State {
            gpr: registers,
            rip: CODE + at,
            rflags: rflags | 2,
            fs_base: DATA,
            gs_base: STACK,
        };
        for _ in 0..20 {
            let before = guest.state.clone();
            let frames = guest.frames().to_vec();
            let ran = guest.run(1);
            prop_assert!(ran.instructions <= 1);
            if ran.stop == Stop::Leave {
                if ran.instructions == 0 {
                    prop_assert_eq!(&guest.state, &before);
                    prop_assert_eq!(guest.frames(), frames);
                }
                break;
            }
        }
    }
}

/// Instructions on registers whose flags are all defined but for AF.
fn sequence(numbers: &mut Numbers) -> (Vec<u8>, u64) {
    let mut code = Vec::new();
    let count = 40 + numbers.below(40);
    for _ in 0..count {
        let kind = numbers.below(9);
        if kind == 8 {
            // jcc to the next
            code.extend([0x70 + numbers.below(16) as u8, 0]);
            continue;
        }
        if numbers.below(4) == 0 {
            code.push(0x66);
        }
        code.push(0x40 | numbers.below(16) as u8);
        let modrm = 0xc0 | numbers.below(64) as u8;
        let low = numbers.below(4) as u8;
        match kind {
            // ALU operations, both directions
            0 | 1 => code.extend([numbers.below(8) as u8 * 8 + low, modrm]),
            // with an immediate of 8 bits
            2 => code.extend([0x83, modrm, numbers.value() as u8]),
            // inc, dec
            3 => code.extend([0xfe | low & 1, modrm & 0xcf]),
            // neg, not
            4 => code.extend([0xf6 | low & 1, modrm & 0xc7 | 0x10 | low << 2 & 8]),
            // setcc, cmovcc
            5 => code.extend([0x0f, 0x90 + numbers.below(16) as u8, modrm]),
            6 => code.extend([0x0f, 0x40 + numbers.below(16) as u8, modrm]),
            // shl, shr, sar by 1
            _ => code.extend([0xd1, modrm & 0xc7 | numbers.pick(&[0x20, 0x28, 0x38])]),
        }
    }
    (code, count)
}

#[test]
fn sequences_do_what_the_cpu_does() {
    let mut native = Native::new();
    let mut cache = CodeCache::new();
    let mut numbers = Numbers::new(2);
    for _ in 0..300 {
        let (code, count) = sequence(&mut numbers);
        native.place(&code);
        cache.invalidate(native.rip() >> 12);
        for _ in 0..10 {
            let before = Registers {
                gpr: std::array::from_fn(|_| numbers.value()),
                rflags: 0x202 | numbers.next() & ARITHMETIC,
            };
            let mut state = State {
                gpr: before.gpr,
                rip: native.rip(),
                rflags: before.rflags,
                fs_base: 0,
                gs_base: 0,
            };
            let ran = run(&mut state, &mut native.memory(), &mut cache, count);
            assert_eq!(
                (ran.stop, ran.instructions),
                (Stop::Budget, count),
                "{code:02x?}"
            );
            assert_eq!(state.rip, native.behind());
            let (after, _) = native.run(&before);
            assert_eq!(state.gpr, after.gpr, "{code:02x?}");
            assert_eq!(state.rflags & !AF, after.rflags & !AF, "{code:02x?}");
        }
    }
}
