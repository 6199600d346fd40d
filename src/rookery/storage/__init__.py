"""Where data lie: paths of this machine and URLs of object stores."""
