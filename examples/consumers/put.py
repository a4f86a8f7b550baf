"""Three orders, acknowledged."""

from streamkit import Producer

with Producer("orders") as producer:
    for number, total in enumerate((42.5, 7.0, 19.9)):
        producer.put({"id": number, "total": total}, key=f"customer-{number}")
