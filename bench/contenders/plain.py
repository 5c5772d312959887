"""This project on a plain channel of aio-pika, in place of the one that writes and reads frames itself."""

from bench.contenders.ours import main
from tests.plain import open_plain
from workqueue.amqp import connection

vars(connection)["open_connection"] = open_plain  # what Link calls

if __name__ == "__main__":
    main()
