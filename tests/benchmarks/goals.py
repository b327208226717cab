"""Nothing yet."""


def main(arguments):
    pass
