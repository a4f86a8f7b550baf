"""The pull style: a batch counts as done when the next one is asked for."""

from streamkit import Consumer

consumer = Consumer("orders", application="audit", start="trim_horizon")

if __name__ == "__main__":
    try:
        for batch in consumer.batches():
            for record in batch:
                print(f"audit {record.value['id']} at {record.sequence_number}", flush=True)
    except KeyboardInterrupt:
        consumer.stop()
