//! Write, clone, change the clone, read both.

use ringstore::{Config, PayloadId, Store};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let store = Store::open(Config::new(dir.path())).await?;
    let (disk, clone) = (PayloadId::new("disk")?, PayloadId::new("clone")?);

    store.write_at(&disk, 0, "written once".into()).await?;
    store.flush(&disk).await?;
    store.copy(&disk, &clone).await?;
    store.write_at(&clone, 0, "W".into()).await?;

    assert_eq!(
        store.read_at(&disk, 0, 64).await?.into_bytes(),
        "written once"
    );
    assert_eq!(
        store.read_at(&clone, 0, 64).await?.into_bytes(),
        "Written once"
    );
    store.close().await?;
    Ok(())
}
