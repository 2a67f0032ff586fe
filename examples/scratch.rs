use ringstore::*;
use std::time::*;
#[tokio::main]
async fn main() -> Result<()> {
    let dir = std::path::PathBuf::from(std::env::args().nth(1).unwrap_or("/tmp/rs".into()));
    let _ = std::fs::remove_dir_all(&dir);
    let mut c = Config::new(&dir);
    c.shards = Some(
        std::env::var("SHARDS")
            .ok()
            .map_or(1, |s| s.parse().unwrap()),
    );
    c.pin_threads = false;
    if let Ok(s) = std::env::var("SPIN") {
        c.idle_spin = Duration::from_micros(s.parse().unwrap());
    }
    let s = Store::open(c.clone()).await?;
    let id = PayloadId::new("a")?;
    let total: u64 = 1 << 30;
    let data = bytes::Bytes::from(vec![7u8; 1 << 20]);
    let t = Instant::now();
    let mut js = tokio::task::JoinSet::new();
    for i in 0..(total >> 20) {
        if js.len() >= 8 {
            js.join_next().await.unwrap().unwrap()?;
        }
        let (s, id, d) = (s.clone(), id.clone(), data.clone());
        js.spawn(async move { s.write_at(&id, i << 20, d).await });
    }
    while let Some(r) = js.join_next().await {
        r.unwrap()?;
    }
    println!("ingest {:?}", t.elapsed());
    s.flush(&id).await?;
    let e = t.elapsed();
    println!(
        "write-seq 1GiB+flush {:?} {:.0} MB/s",
        e,
        total as f64 / 1e6 / e.as_secs_f64()
    );
    for qd in [1usize, 8, 32] {
        let t = Instant::now();
        let n = 20000 * if qd == 1 { 1 } else { 3 };
        let mut hs = vec![];
        let mut seed = 88172645463325252u64;
        for _ in 0..qd {
            let (s, id) = (s.clone(), id.clone());
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let mut x = seed;
            hs.push(tokio::spawn(async move {
                for _ in 0..n / qd {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    let off = (x % (total / 4096)) * 4096;
                    let r = s.read_at(&id, off, 4096).await.unwrap();
                    assert_eq!(r.len(), 4096);
                }
            }));
        }
        for h in hs {
            h.await.unwrap();
        }
        let e = t.elapsed();
        println!("randread qd{qd} {:.0} iops", n as f64 / e.as_secs_f64());
    }
    for w in [1usize, 32] {
        let t = Instant::now();
        let n = 4000 * if w == 1 { 1 } else { 10 };
        let mut hs = vec![];
        for k in 0..w {
            let (s, id) = (s.clone(), id.clone());
            let mut x = 88172645463325252u64 + k as u64 * 7919;
            hs.push(tokio::spawn(async move {
                let d = bytes::Bytes::from(vec![9u8; 4096]);
                for _ in 0..n / w {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    let off = (x % (total / 4096)) * 4096;
                    s.write_at(&id, off, d.clone()).await.unwrap();
                    s.flush(&id).await.unwrap();
                }
            }));
        }
        for h in hs {
            h.await.unwrap();
        }
        let e = t.elapsed();
        println!("write+flush x{w} {:.0}/s", n as f64 / e.as_secs_f64());
    }
    let t = Instant::now();
    let b = PayloadId::new("b")?;
    let n = 2000;
    for i in 0..n {
        s.copy(&id, &PayloadId::new(format!("clone{i}"))?).await?;
    }
    println!("copy {:?} each", t.elapsed() / n);
    s.copy(&id, &b).await?;
    let t = Instant::now();
    s.truncate(&b, 1 << 19).await?;
    println!("truncate {:?}", t.elapsed());
    let st = s.stats().await?;
    println!("{:?}", st);
    println!("{:?}", s.latency().await?);
    let t = Instant::now();
    s.close().await?;
    println!("close {:?}", t.elapsed());
    let t = Instant::now();
    let s = Store::open(c).await?;
    println!("open {:?}", t.elapsed());
    println!("{}", s.size(&id).await?);
    s.close().await?;
    Ok(())
}
