"""AMQP, and the only package that imports aio_pika, aiormq and pamqp. It knows nothing of retries or ledgers.

    lane         frames: deliveries, confirms, acks and publishes of one channel, straight from and to the socket
    connection   a connection with one channel that is opened anew when it goes
    publisher    publishes, and returns once the broker has stored the message
    consumer     the messages of one queue, over as many channels as it takes
    wire         the endpoints of a generated application

Connections are plain ones, opened anew here when they go: a robust connection of aio_pika restores itself in the
background, and can then be open and consume nothing (https://github.com/mosquito/aio-pika/issues/231).
"""
