//! What the memory of a process goes by. Alone in its file, and so in its process. Contract section
//! 6, scenario 132.

mod common;

use common::*;

/// Bytes of this process that are in memory.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

// scenario 132
// S-29
#[test]
fn payloads_of_a_byte_take_what_the_map_says_and_no_page_each() {
    const STEP: u64 = 100_000;
    let bench = Bench::small();
    run(async {
        let mut config = bench.config();
        config.read_buffer_bytes = 1 << 20;
        let store = open(config).await.unwrap();
        let mut resident = Vec::new();
        for step in 0..3 {
            for n in step * STEP..(step + 1) * STEP {
                let name = id(&format!("tiny-{n}"));
                store.write_at(&name, 0, "x".into()).await.unwrap();
                if n % 10_000 == 0 {
                    let stats = store.stats().await.unwrap();
                    assert!(stats.local_mem_used <= bench.config().dirty_bytes_max);
                    assert!(stats.read_buffer_used <= 1 << 20);
                }
            }
            // Read, too, so that what is read is in memory as far as it may be.
            for n in (step * STEP..(step + 1) * STEP).step_by(10) {
                let name = id(&format!("tiny-{n}"));
                assert_eq!(store.read_at(&name, 0, 9).await.unwrap().into_bytes(), "x");
            }
            store.flush_all().await.unwrap();
            resident.push(resident_bytes());
        }
        let stats = store.stats().await.unwrap();
        assert_eq!(stats.file_count, 3 * STEP);
        assert!(stats.map_bytes <= 3 * STEP * 256, "{}", stats.map_bytes);
        // The first step fills every budget; each further payload costs its place in the map, and a
        // checkpoint's share of it while one is written.
        let each = (resident[2] - resident[0]) / (2 * STEP);
        println!(
            "{each} bytes a payload, {} by the map",
            stats.map_bytes / (3 * STEP)
        );
        assert!(each <= 1024, "{each} bytes a payload: {resident:?}");
        store.close().await.unwrap();
    });
}
